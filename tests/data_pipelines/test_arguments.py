"""Arguments of builders are checked before any file is read."""

import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from data_pipelines.prepared import prepare


@pytest.mark.parametrize(
    "dataset, wrong, message",
    [
        ("chestx_det", {"regions": "masks"}, "regions is 'masks', must be one of polygons, boxes"),
        ("idrid", {"images": "all"}, "images is 'all', must be one of segmentation, grading"),
        ("padchest_gr", {"language": "fr"}, "language is 'fr', must be one of en, es"),
        ("vindr_cxr", {"readers": "all"}, "readers is 'all', must be one of united, separate"),
        ("ms_cxr", {"prompts": "x"}, "prompts is 'x', must be one of phrases, classes"),
        ("cxr_lt", {"task": 1}, "task is 1, must be one of 2, 3"),
        ("mimic_cxr", {"labeler": "me"}, "labeler is 'me', must be one of chexpert, negbio"),
        ("mimic_cxr", {"images": "png"}, "images is 'png', must be one of jpg, dicom"),
        ("open_i", {"leaks": "keep"}, "leaks is 'keep', must be one of stop, drop"),
        ("mimic_cxr", {"views": "PA"}, "views is the text 'PA'; write it as a list"),
        ("roco", {"containing": "chest"}, "containing is the text 'chest'; write it as a list"),
        ("pairs", {"image_size": 8}, "image_size is 8, must lie between 16 and 4096 pixels"),
        ("pairs", {"max_bad_fraction": 2}, "max_bad_fraction is 2, must lie between 0 and 1"),
        ("pairs", {"sizes": 8}, "pairs has no argument 'sizes'; it has .*image_size, images"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_the_argument(tmp_path, dataset, wrong, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        prepare(dataset, tmp_path / "out", raw=tmp_path, builder=wrong)


@pytest.mark.parametrize("where", ["gs://bucket/data", "s3://bucket/data"])
def test_remote_storage_is_refused_before_anything_is_written(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    for directory, raw, builder in ((where, tmp_path, {}), ("data", where, {}), ("data", tmp_path, {"images": where})):
        with pytest.raises(UsageError, match=rf" = {where}: remote storage is not supported yet"):
            prepare("cxr_lt", directory, raw=raw, builder=builder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "pairs", "--raw", "gs://bucket/raw", "--out", "data"],
        ["prepare", "phantom", "--out", "gs://bucket/data"],
        ["overview", "pairs", "--data", "gs://bucket/data", "--out", "page.html"],
        ["overview", "pairs", "--data", "data", "--out", "gs://bucket/page.html"],
    ],
)
def test_commands_refuse_remote_storage_in_a_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(command)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1
    assert "gs://bucket" in told and "remote storage is not supported yet" in told
    assert not list(tmp_path.iterdir())
