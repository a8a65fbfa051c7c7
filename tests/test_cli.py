"""The command line: what it writes, what it says, and with which status it exits."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import COMMANDS, main, parser
from afloc_jax.cli.parser import underscored
from afloc_jax.errors import UsageError
from afloc_jax.inference.inputs import output_names
from tests.inference.conftest import folder  # noqa: F401 (a fixture)

EVALUATE = ["evaluate", "{}", "--dataset", "phantom", "--data", "{}", "--out", "{}/o"]


@pytest.fixture
def images(tmp_path):
    """Two readable images of odd sizes and one text file that claims to be one."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (90, 121)), ("b.jpg", (131, 77))):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, shape, dtype=np.uint8))
    (tmp_path / "broken.png").write_text("not an image")
    return tmp_path


def names(out):
    return sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"example:\n  afloc {name} " in said
    assert not re.search(r"--\w+-\w", said), "flags are shown with _"


def test_help_answers_without_loading_jax_or_a_web_server():
    code = """if True:
        import contextlib, io, sys
        from afloc_jax.cli import COMMANDS, main
        for call in (["--help"], *([name, "--help"] for name in COMMANDS)):
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                main(call)
        print({"jax", "numpy", "etils", "ml_collections", "starlette", "uvicorn"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_files_may_stand_before_between_and_after_flags():
    given = parser().parse_args(["serve", "a", "--port", "0", "b"])
    assert (given.model.name, given.other.name, given.port) == ("a", "b", 0)
    given = parser().parse_args(["localize", "--prompt", "x", "m", "1.png", "--out", "o", "2.png", "--", "-3.png"])
    assert (given.model.name, [image.name for image in given.images]) == ("m", ["1.png", "2.png", "-3.png"])


def test_flags_are_spelled_with_underscores_or_with_hyphens():
    call = ["evaluate", "m", "--dataset", "d-d", "--data", "d", "--out", "o-o", "--title=a-b"]
    for flag in (["--class_prompt", "x-y"], ["--class-prompt", "x-y"], ["--class-prompt=x-y"], ["--class-p", "x-y"]):
        parsed = parser().parse_args([*call, *flag])
        assert (parsed.class_prompt, parsed.dataset, parsed.title) == ("x-y", "d-d", "a-b")
    assert underscored(["--a-b", "--", "--a-b"]) == ["--a_b", "--", "--a-b"]


@pytest.mark.parametrize(
    "call",
    [
        ["localize", "m", "a.png", "--prompt", "x", "--out", "gs://bucket/o"],
        ["localize", "s3://bucket/m", "a.png", "--prompt", "x", "--out", "o"],
        ["localize", "m", "s3://bucket/a.png", "--prompt", "x", "--out", "o"],
        ["classify", "m", "a.png", "--class", "x", "--out", "gs://bucket/o.csv"],
        ["retrieve", "m", "--images", "i", "--query", "x", "--out", "gs://bucket/o.csv"],
        ["export", "m", "s3://bucket/o", "--format", "onnx"],
        ["import", "a.pth", "s3://bucket/m"],
        ["serve", "s3://bucket/m"],
        ["evaluate", "m", "--dataset", "phantom", "--data", "s3://bucket/d", "--out", "o"],
        ["score", "--truth", "gs://bucket/t.json", "--heatmaps", "m.npz", "--out", "o"],
        ["compare", "a", "s3://bucket/b"],
        ["report", "s3://bucket/run"],
        ["prepare", "phantom", "--out", "gs://bucket/d"],
        ["overview", "phantom", "--data", "gs://bucket/d", "--out", "o.html"],
        ["compile", "--config", "gs://bucket/c.py", "--topology", "cpu:1"],
    ],
    ids=lambda call: call[0],
)
def test_remote_storage_is_refused_in_one_line_before_anything_is_written(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(call)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "remote storage is not supported yet" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        ["localize", "model", "", "--prompt", "effusion", "--out", "o"],
        ["localize", "model", "film.png", "--prompt", "effusion", "--out", ""],
        ["localize", "", "film.png", "--prompt", "effusion", "--out", "o"],
        ["verify", ""],
    ],
)
def test_an_empty_path_is_refused_and_not_taken_for_the_current_folder(call, tmp_path, monkeypatch, capsys):
    """It is most often a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(call)
    assert caught.value.code == 2
    assert "the path is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["locate"], "invalid choice: 'locate'"),
        (["localize", "model", "a.png", "--out", "o"], "--prompt"),
        (["localize", "model", "a.png", "--prompt", "x", "--out", "o", "--threshold", "2"], "between -1 and 1"),
        (["localize", "model", "a.png", "--prompt", "x", "--out", "o", "--map", "round"], "invalid choice"),
        (["evaluate", "model", "--dataset", "phantom", "--data", "d", "--out", "o", "--builder", "test"], "KEY=VALUE"),
        (["evaluate", "model", "--dataset", "phantom", "--data", "d", "--out", "o", "--bootstrap", "-1"], "0 or more"),
    ],
)
def test_a_wrong_call_exits_2_with_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["localize", "{}/none", "{}/a.png", "--prompt", "effusion", "--out", "{}/o"], 1, "no such model folder"),
        (["localize", "{}", "{}/a.png", "--prompt", "effusion", "--out", "{}/o"], 1, "config.json is missing"),
        (["localize", "{}", "{}/a.png", "--prompt", " . ", "--out", "{}/o"], 2, "empty after cleaning"),
        (["localize", "{}", "{}/a.png", "--prompt", "edema", "--compatible", "--out", "{}/o"], 2, "--compatible"),
        (["localize", "{}", "{}/a.png", "--prompt", "edema", "--out", "{}/a.png"], 2, "a file is in the way"),
        (["classify", "{}", "{}/a.png", "--out", "{}/s.csv"], 2, "no class"),
        (["classify", "{}", "{}/a.png", "--class", "edema", "--out", "{}"], 2, "is a folder"),
        (["classify", "{}", "{}/a.png", "--class", "edema", "--out", "{}/s.json"], 2, "name a .csv"),
        (
            ["classify", "{}", "{}/a.png", "--prompts", "{}/broken.png", "--out", "{}/s.csv"],
            2,
            "not valid JSON at line",
        ),
        (["classify", "{}", "{}/a.png", "--prompts", "{}/none.json", "--out", "{}/s.csv"], 2, "No such file"),
        (["evaluate", "{}", "--dataset", "phantom", "--data", "{}", "--out", "{}/o", "--protocol", "x"], 2, "protocol"),
        (["evaluate", "{}", "--dataset", "pairz", "--data", "{}", "--out", "{}/o"], 2, "unknown data set"),
        (
            [*EVALUATE, "--class", "edema"],
            2,
            "--class belongs to --task classification or retrieval or robustness or counterfactual",
        ),
        ([*EVALUATE, "--task", "retrieval", "--prompts", "chest"], 2, "--prompts belongs to --task classification"),
        (
            [*EVALUATE, "--task", "robustness", "--protocol", "grounding"],
            2,
            "--protocol belongs to --task localization",
        ),
        (
            ["score", "--truth", "{}/none", "--heatmaps", "{}/none", "--out", "{}/o"],
            1,
            "/none: cannot be read (No such file or directory); give a truth file",
        ),
        (["prepare", "pairs", "--raw", "{}/none", "--out", "{}/d"], 1, "raw files"),
        (["report", "{}"], 1, "no config.json"),
    ],
)
def test_failures_say_what_to_do_in_one_line(arguments, status, words, images, capsys):
    assert main([argument.format(images) for argument in arguments]) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_debug_shows_the_traceback(images, capsys):
    assert main(["report", str(images), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_localize_writes_maps_overlays_and_one_json_and_names_the_bad_image(folder, images, capsys):  # noqa: F811
    out = images / "out"
    files = [str(images / name) for name in ("a.png", "broken.png", "b.jpg")]
    prompts = ["--prompt", "Small left effusion.", "--prompt", "nodule"]
    assert main(["localize", str(folder), *files, *prompts, "--out", str(out), "--threshold", "0.4"]) == 1
    said = capsys.readouterr().err
    assert "broken.png: not an image" in said
    assert "1 of 3 images failed" in said
    expected = [f"{stem}.{k}.{kind}" for stem in "ab" for k in (0, 1) for kind in ("heatmap.npy", "overlay.png")]
    assert names(out) == sorted([*expected, "boxes.csv", "localize.json", "localize.jsonl"])

    content = json.loads((out / "localize.json").read_text())
    model = afloc_jax.load(folder)
    assert content["model"]["weights_sha256"] == model.weights_sha256
    assert len(content["failed"]) == 1
    for image, shape in zip(content["images"], ((90, 121), (131, 77)), strict=True):
        assert (image["height"], image["width"]) == shape
        found = model.localize([image["image"]], ["Small left effusion.", "nodule"], 0.4)[0]
        for entry, result in zip(image["prompts"], found, strict=True):
            heatmap = np.load(out / entry["heatmap"])
            assert heatmap.dtype == np.float32
            np.testing.assert_allclose(heatmap, result.heatmap, atol=1e-4 * np.abs(heatmap).max())
            assert entry["boxes"] == result.boxes.tolist()
            assert entry["similarity"] == pytest.approx(result.similarity, abs=1e-5)
            assert entry["threshold"] == 0.4
            overlay = cv2.imread(str(out / entry["overlay"]))
            assert overlay.shape[0] > shape[0] and overlay.shape[1] >= shape[1], "the caption is below the image"
            assert entry["present"] is None and len(entry["scores"]) == len(entry["boxes"])
    assert [entry["prompt"] for entry in content["images"][0]["prompts"]] == ["small left effusion", "nodule"]


def test_localize_writes_the_square_as_the_release_has_it(folder, images):  # noqa: F811
    out = images / "out"
    call = ["localize", str(folder), str(images / "a.png"), "--prompt", "no left effusion", "--out", str(out)]
    assert main([*call, "--map", "square", "--compatible"]) == 0
    found = afloc_jax.load(folder).localize([images / "a.png"], ["no left effusion"], compatible=True)[0][0]
    heatmap = np.load(out / "a.0.heatmap.npy")
    assert heatmap.shape == (224, 224)
    np.testing.assert_allclose(heatmap, found.square, atol=1e-4 * np.abs(heatmap).max())
    assert (out / "a.0.overlay.png").exists()


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    left, right, jpeg = tmp_path / "left/a.png", tmp_path / "right/a.png", tmp_path / "right/b.png"
    assert output_names([left, right, jpeg, left]) == {left: "left_a", right: "right_a", jpeg: "b"}
    png, jpg = tmp_path / "a.png", tmp_path / "a.jpg"
    assert output_names([png, jpg]) == {png: "a.png", jpg: "a.jpg"}
    with pytest.raises(UsageError, match="separate folders"):  # one file on disks that do not tell case apart
        output_names([png, tmp_path / "A.png"])
    deep = [tmp_path / f"{patient}/study1/view1_frontal.jpg" for patient in ("p1", "p2")]
    assert list(output_names(deep).values()) == ["p1_study1_view1_frontal", "p2_study1_view1_frontal"]


def test_classify_writes_a_row_per_image_and_a_column_per_class(folder, images, capsys):  # noqa: F811
    files = [str(images / name) for name in ("a.png", "b.jpg")]
    (images / "prompts.json").write_text(json.dumps({"edema": ["mild edema", "severe edema"]}))
    out = images / "new" / "scores.csv"
    call = ["classify", str(folder), *files, "--class", "pneumonia", "--class", "edema", "--out", str(out)]
    assert main([*call, "--prompts", str(images / "prompts.json")]) == 0
    assert "2 images done" in capsys.readouterr().out
    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    assert header == ["image", "pneumonia", "edema"]
    expected = afloc_jax.load(folder).classify(files, ["pneumonia", "edema"], {"edema": ["mild edema", "severe edema"]})
    for row, file, values in zip(rows, files, expected, strict=True):
        assert row[0] == file
        np.testing.assert_allclose([float(value) for value in row[1:]], values, atol=1e-4)
    assert json.loads(out.with_suffix(".json").read_text())["framing"] == "pad"
    assert main([*call, "--compatible"]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["framing"] == "crop", "as the release classifies"
    assert main([*call[:2], str(images / "broken.png"), "--class", "edema", "--out", str(out)]) == 1


def test_prepare_then_evaluate_scores_the_model_and_all_baselines(folder, tmp_path, capsys):  # noqa: F811
    sizes = [flag for size in ("train=6", "validation=1", "test=4") for flag in ("--builder", size)]
    data, out = tmp_path / "data", tmp_path / "scores"
    assert main(["prepare", "phantom", "--out", str(data), *sizes]) == 0
    assert "test 4" in capsys.readouterr().out
    call = ["evaluate", str(folder), "--dataset", "phantom", "--data", str(data), "--out", str(out), *sizes]
    assert main([*call, "--bootstrap", "50"]) == 0
    files = {"per_sample.csv", "baselines.csv", "summary.json", "summary.md", "examples.npz", "examples.json", "report"}
    assert files == set(names(out))
    summary = json.loads((out / "summary.json").read_text())
    names_of = ["location_prior", "prompt_prior", "shuffled_image", "class_name", "untrained"]
    assert list(summary["baselines"]) == names_of
    assert "training masks" in summary["baselines"]["location_prior"]["from"]
    assert summary["provenance"]["weights_sha256"] == afloc_jax.load(folder).weights_sha256
    # tiny weights are untrained ones of the same seed: the difference to the untrained model is exactly 0
    for metric in ("iou", "dice", "pointing", "cnr"):
        difference = summary["baselines"]["untrained"]["difference"][metric]["overall"]["mean"]
        assert difference == pytest.approx(0, abs=1e-6)
