"""Apache Beam makes the same records as the threads. It has an environment of its own (requirements-beam.txt)."""

import pytest
from raw_folders import SECRET, pairs_folder
from test_annotated_sizes import PATH, ms_cxr, ms_cxr_images
from test_shards import BUILDER, content

from afloc_jax.errors import UsageError, UserError
from data_pipelines.building.decode import Decoding
from data_pipelines.building.items import Item
from data_pipelines.building.pseudonyms import pseudonym
from data_pipelines.prepared import open_source, prepare


def test_the_direct_runner_gives_identical_records_and_the_same_account(tmp_path):
    pytest.importorskip("apache_beam", reason="SKIPPED: Apache Beam is not installed; see requirements-beam.txt")
    raw = tmp_path / "raw"
    pairs_folder(raw, 40)
    (raw / "images" / "003.png").write_bytes(b"broken")
    (raw / "images" / "017.png").write_bytes(b"")
    (tmp_path / "key").write_text("a key of sixteen bytes and more")
    builder = {**BUILDER, "pseudonym_key": str(tmp_path / "key")}
    prepare("pairs", tmp_path / "threads", raw=raw, builder=builder)
    prepared = prepare("pairs", tmp_path / "beam", raw=raw, builder=builder, beam="--runner=DirectRunner")
    assert prepared.built and [entry.image for entry in prepared.report.rejected] == ["003.png", "017.png"]
    assert prepared.report.rejected[1].reason == "the file is empty"
    assert content(tmp_path / "beam") == content(tmp_path / "threads")  # the account included
    left = {path.name.split("-")[0] for path in next((tmp_path / "beam").glob("pairs-*/pairs/*")).iterdir()}
    assert left == {"dataset_info.json", "features.json", "pairs"}, "neither items nor names of broken images stay"
    named = {pseudonym(f"p{number // 2}", b"a key of sixteen bytes and more") for number in range(40)}
    assert {record.patient for record in open_source("pairs", tmp_path / "beam", "train")} <= named


def test_boxes_outside_are_counted_by_beam_too(tmp_path):
    pytest.importorskip("apache_beam", reason="SKIPPED: Apache Beam is not installed; see requirements-beam.txt")
    raw = tmp_path / "raw"
    boxes = {"a": [0, 0, 20, 20], "b": [20, 20, 20, 30], "c": [200, 0, 5, 5]}
    ms_cxr(raw, boxes, width=30, height=40)
    ms_cxr_images(raw, boxes, 40, 30)
    call = {"raw": raw, "builder": {"partial": True, "max_bad_fraction": 0.5}}
    threads = prepare("ms_cxr", tmp_path / "threads", **call)
    assert threads.report.boxes_outside == {PATH.format("b"): 1} and len(threads.report.rejected) == 1
    assert prepare("ms_cxr", tmp_path / "beam", beam="--runner=DirectRunner", **call).report == threads.report


def test_the_job_holds_names_of_files_and_no_report(tmp_path):
    beam = pytest.importorskip("apache_beam", reason="SKIPPED: Apache Beam is not installed; see requirements-beam.txt")
    from data_pipelines.building.beam import collection

    items = [Item(f"{k}.png", tmp_path / f"{k}.png", sentences=[SECRET]) for k in range(600)]
    pipeline = beam.Pipeline()
    _ = pipeline | collection(items, Decoding(32), tmp_path / "beam")
    job = pipeline.to_runner_api().SerializeToString()
    assert len(list((tmp_path / "beam").glob("items-*"))) == 3
    assert len(job) < 100_000 and SECRET.encode() not in job


def test_too_many_broken_images_stop_a_beam_build_and_are_named(tmp_path):
    pytest.importorskip("apache_beam", reason="SKIPPED: Apache Beam is not installed; see requirements-beam.txt")
    raw = tmp_path / "raw"
    pairs_folder(raw, 20)
    for name in ("003.png", "017.png"):
        (raw / "images" / name).write_bytes(SECRET.encode())
    builder = {**BUILDER, "max_bad_fraction": 0.05}
    with pytest.raises(UserError, match=r"2 of 20 images are unusable.*\(pairs\.csv, row 5: .*row 19: ") as caught:
        prepare("pairs", tmp_path / "out", raw=raw, builder=builder, beam="--runner=DirectRunner")
    assert SECRET not in str(caught.value) and not list((tmp_path / "out").glob("pairs-*"))
    listed = (tmp_path / "out" / "pairs.rejected.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in listed] == ["003.png", "017.png"]


def test_phantoms_are_not_built_with_beam(tmp_path, monkeypatch):

    from data_pipelines.building import build

    monkeypatch.setattr(build, "pipeline_options", lambda text: None)
    with pytest.raises(UsageError, match="drawn, not read"):
        prepare("phantom", tmp_path, builder={"train": 1, "validation": 0, "test": 0}, beam="")


def test_without_beam_the_command_says_what_to_install(tmp_path):
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        pairs_folder(tmp_path / "raw", 4)
        with pytest.raises(UsageError, match=r"pip install \"afloc-jax\[beam\]\""):
            prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", beam="--runner=DirectRunner")
    else:
        pytest.skip("SKIPPED: Apache Beam is installed")
