"""Files of heat maps, well formed, unusual and broken."""

import os
import time
import zipfile

import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
from afloc_jax.evaluation.truth.read import read_truth
from data_pipelines.images import Geometry
from tests.evaluation.truth.coco_truth import COCO


def save_maps(path, **replaced):
    maps = {
        "files/a.jpg\tmild edema": np.random.default_rng(0).random((224, 224)).astype(np.float32),
        "b.jpg\tSMALL effusion": np.random.default_rng(1).standard_normal((90, 56)),
        "unused\tmap": np.zeros(3),
    }
    np.savez(path, **{**maps, **replaced})
    return maps


def test_maps_are_found_by_image_and_phrase_and_brought_to_the_square(write, tmp_path):
    truths = read_truth(write(COCO))
    maps = save_maps(tmp_path / "maps.npz")
    file = HeatmapFile(tmp_path / "maps.npz")
    file.check(truths)
    edema, effusion, other = file.maps(truths)
    np.testing.assert_array_equal(edema, maps["files/a.jpg\tmild edema"])
    np.testing.assert_array_equal(other, edema)  # same image and phrase, another category
    original = maps["b.jpg\tSMALL effusion"]
    geometry = Geometry(90, 56)
    assert effusion.shape == (224, 224)
    np.testing.assert_allclose(geometry.inner(effusion).mean(), original.mean(), atol=0.01)
    peak = np.unravel_index(effusion.argmax(), effusion.shape)
    row, column = np.unravel_index(original.argmax(), original.shape)
    x, y = geometry.points_to_original([peak[1] + 0.5, peak[0] + 0.5])
    assert abs(x - column - 0.5) < 1 and abs(y - row - 0.5) < 1
    padding = np.ones((224, 224), bool)
    geometry.inner(padding)[...] = False
    assert (effusion[padding] == original.min().astype(np.float32)).all()


def test_missing_maps_are_counted_and_the_first_named_without_the_phrase(write, tmp_path):
    truths = read_truth(write(COCO))
    np.savez(tmp_path / "maps.npz", other=np.zeros((224, 224)))
    with pytest.raises(UserError, match=r"no heat map for 3 of 3 samples, first: files/a.jpg#0[,;]") as caught:
        HeatmapFile(tmp_path / "maps.npz").check(truths)
    assert "mild" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros((10, 10)), r"files/a.jpg#0 has shape \(10, 10\); expected \(224, 224\) or \(300, 448\)"),
        (np.zeros((448, 300)), r"has shape \(448, 300\)"),
        (np.zeros((1, 224, 224)), r"has shape \(1, 224, 224\)"),
        (np.full((224, 224), "a"), "must hold real numbers"),
        (np.zeros((224, 224), complex), "must hold real numbers"),
        (np.full((224, 224), None), "damaged or not an array of numbers"),
        (np.full((224, 224), np.nan), "values that are NaN or infinite"),
        (np.full((300, 448), -np.inf, np.float32), "values that are NaN or infinite"),
    ],
)
def test_a_map_that_does_not_fit_its_image_is_refused(write, tmp_path, broken, message):
    truths = read_truth(write(COCO))
    save_maps(tmp_path / "maps.npz", **{"files/a.jpg\tmild edema": broken})
    with pytest.raises(UserError, match=message):
        list(HeatmapFile(tmp_path / "maps.npz").maps(truths))


def test_a_file_that_is_no_archive_of_maps_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "bare.npy", np.zeros((224, 224)))
    save_maps(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    for name in ("text.npz", "empty.npz", "bare.npy", "cut.npz"):
        with pytest.raises(UserError, match=name):
            HeatmapFile(tmp_path / name)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_maps_of_whole_numbers_are_scored_as_floats(write, tmp_path, kind):
    """Differences of bytes would wrap: 2 - 3 is 255."""
    whole = np.random.default_rng(0).integers(0, 256, (224, 224)).astype(kind)
    save_maps(tmp_path / "maps.npz", **{"files/a.jpg\tmild edema": whole})
    found = next(HeatmapFile(tmp_path / "maps.npz").maps(read_truth(write(COCO))))
    assert found.dtype.kind == "f"
    np.testing.assert_array_equal(found, whole.astype(np.float64))


@pytest.mark.parametrize("header", ["(" * 900, "{'descr': '<f4', 'fortran", "{'shape': (10**400,)}", ""])
def test_a_map_whose_header_is_none_is_refused(write, tmp_path, header):
    with zipfile.ZipFile(tmp_path / "maps.npz", "w") as archive:
        start = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little")
        archive.writestr("files/a.jpg\tmild edema.npy", start + header.encode())
    with pytest.raises(UserError, match=r"the map of files/a\.jpg#0 is damaged or not an array of numbers"):
        next(HeatmapFile(tmp_path / "maps.npz").maps(read_truth(write(COCO))))


@pytest.mark.parametrize("flags", [b"\1\0\0\0", b"\0\0\x61\0"], ids=["encrypted", "unknown method"])
def test_a_map_in_an_archive_that_cannot_be_unpacked_is_refused(write, tmp_path, flags):
    save_maps(tmp_path / "maps.npz")
    data = bytearray((tmp_path / "maps.npz").read_bytes())
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(sign) + place
        data[at : at + 4] = flags
    (tmp_path / "maps.npz").write_bytes(data)
    with pytest.raises(UserError, match="is damaged or not an array of numbers"):
        list(HeatmapFile(tmp_path / "maps.npz").maps(read_truth(write(COCO))))


def test_a_map_that_would_take_all_memory_is_refused_before_it_is_unpacked(write, tmp_path):
    """Zeros pack to a thousandth: this file of 1.4 MB states a map of 1.4 GB."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1)))
    with (
        zipfile.ZipFile(tmp_path / "maps.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("files/a.jpg\tmild edema.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (14_000, 14_000)})
        for _ in range(1400):
            file.write(bytes(1_000_000))
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"the map of files/a\.jpg#0 has more than 1,360,004,096 bytes"):
        next(HeatmapFile(tmp_path / "maps.npz").maps(read_truth(write(COCO))))
    assert time.monotonic() - begun < 5
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="not a regular file"):
        HeatmapFile(tmp_path / "pipe.npz")
