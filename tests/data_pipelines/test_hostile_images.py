"""One bad image costs one row, whatever it is: it is rejected, named by its row, and nothing waits or takes memory."""

import ast
import io
import os
import resource
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from published import dicom_file
from raw_folders import SECRET, pairs_folder, radiograph, write_table

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from benchmarks.hostile.images import BAD_IMAGES, png
from benchmarks.hostile.valid_files import picture
from data_pipelines import dicom, images
from data_pipelines.encoded import is_short_png, unpacks_beyond
from data_pipelines.images import ImageError, decode_image, read_image
from data_pipelines.prepared import prepare

BAD = {  # name -> reason in the report
    "bomb.png": "more than 170,000,000 pixels is too large",
    "short.png": "truncated: it has fewer rows than it states",
    "interlaced.png": "truncated: it has fewer rows than it states",
    "nan.tif": "pixels that are no finite numbers",
    "inf.tif": "pixels that are no finite numbers",
    "scans.jpg": "more than 64 scans, each of which takes time",
    "eps.png": "not an image in a known format",
    "gif.png": "not an image in a known format",
    "empty.png": "the file is empty",
}


def test_each_bad_image_costs_one_row(tmp_path):
    raw, names = tmp_path / "raw", list(BAD)
    rows = pairs_folder(raw, 4)
    for name in BAD:
        (raw / "images" / name).write_bytes(BAD_IMAGES[name])
    os.mkfifo(raw / "images" / "pipe.png")
    (raw / "images" / "zero.png").symlink_to("/dev/zero")
    unread = {"pipe.png": "cannot be read (not a regular file)", "zero.png": "cannot be read (not a regular file)"}
    wrong = {
        f"{'x' * 300}.png": "column image: a file name that is too long",
        "a\0.png": "column image: a control character in a file name",
        "/dev/zero": "column image: a file outside its folder",
        "../images/000.png": "column image: a file outside its folder",
    }
    text = {"text": f"Effusion of {SECRET}."}
    write_table(raw / "pairs.csv", [*rows, *({"image": name, **text} for name in (*names, *unread, *wrong))])
    with (raw / "pairs.csv").open("a") as file:
        file.write(f"few.png,{SECRET}\n")
    how = {"max_bad_fraction": 1, "fractions": {"train": 1.0}}
    begun = time.monotonic()
    report = prepare("pairs", tmp_path / "out", raw=raw, builder=how).report
    assert time.monotonic() - begun < 30
    total = 4 + len(BAD) + 2 + len(wrong) + 1
    assert report.records == {"train": 4} and report.rows == total
    found = {entry.image: entry.reason for entry in report.rejected}
    expected = BAD | unread
    first = 6 + len(BAD) + 2
    expected |= {f"pairs.csv, row {number}": reason for number, reason in enumerate(wrong.values(), first)}
    expected[f"pairs.csv, row {first + 4}"] = "column text: the row has 2 cells and the header 3"
    assert found == expected
    with pytest.raises(UserError) as caught:
        prepare("pairs", tmp_path / "stopped", raw=raw, builder=how | {"max_bad_fraction": 0.1})
    said = str(caught.value)
    assert said.startswith("build stopped: 3 of 20 images are unusable") and "Roe" not in said
    assert "pairs.csv, row 17, column image: a file name that is too long" in said
    listed = (tmp_path / "stopped" / "pairs.rejected.txt").read_text().splitlines()
    assert len(listed) == 3 and listed[0] == "pairs.csv, row 17: column image: a file name that is too long"


def test_one_stray_quote_stops_the_build_and_drops_no_row(tmp_path):
    """The fifth of 20 rows lacks its closing quote, for which five records were once built without a word."""
    raw = tmp_path / "raw"
    pairs_folder(raw, 20)
    lines = [f'{n:03d}.png,"text number {n}, effusion",p{n}' for n in range(20)]
    lines[4] = '004.png,"text number 4 effusion,p4'
    (raw / "pairs.csv").write_text("\n".join(["image,text,patient", *lines]) + "\n")
    with pytest.raises(UserError, match=r"pairs\.csv, row 6, column text: the quote of a cell is unbalanced"):
        prepare("pairs", tmp_path / "out", raw=raw)
    assert not list((tmp_path / "out").glob("pairs-*"))


def test_whole_images_are_never_taken_for_short_ones(tmp_path):
    """Black last rows, passes, one bit, palettes, 16 bits and colour, of odd sizes."""
    random = np.random.default_rng(0)
    for height, width in ((8, 8), (9, 13), (40, 31)):
        pixels = random.integers(1, 255, (height, width)).astype(np.uint8)
        pixels[-3:] = 0
        colour = np.repeat(pixels[..., None], 3, -1)
        pictures = [pixels, pixels > 99, pixels.astype(np.uint16) * 99, colour]
        for pixels_of in pictures:
            data = picture(pixels_of, "PNG")
            assert not is_short_png(data)
            assert decode_image(data, "a.png").shape == (height, width)
        palette = io.BytesIO()
        Image.fromarray(pixels).convert("P").save(palette, "PNG", bits=4)
        assert not is_short_png(palette.getvalue())
    assert decode_image(png(40, 30, 999, interlaced=1), "a.png").min() == 200
    for kept in range(1, 8):  # rows of the image that are there
        data = png(8, 8, kept)
        assert is_short_png(data)
        with pytest.raises(ImageError, match="fewer rows"):
            decode_image(data, "a.png")


def test_a_png_without_its_palette_is_refused():
    file = io.BytesIO()
    Image.fromarray(radiograph(1)).convert("P").save(file, "PNG")
    whole = file.getvalue()
    assert decode_image(whole, "a.png").shape == (40, 30)
    start = whole.index(b"PLTE") - 4
    without = whole[:start] + whole[start + 12 + int.from_bytes(whole[start : start + 4], "big") :]
    with pytest.raises(ImageError, match="its palette is missing"):
        decode_image(without, "a.png")


def test_deep_pixels_are_scaled_as_in_float64_at_once():
    for kind in (np.uint16, np.int32, np.float32):
        pixels = (np.random.default_rng(1).random((61, 43)) * 60_000).astype(kind)
        whole = pixels.astype(np.float64)
        expected = np.rint((whole - whole.min()) * (255.0 / (whole.max() - whole.min()))).astype(np.uint8)
        np.testing.assert_array_equal(images.eight_bits(pixels, "a"), expected)


def test_dicom_files_that_become_far_too_large_are_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    path = tmp_path / "a.dcm"
    pixels = dicom_file(path)
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 60_000
    dataset.save_as(tmp_path / "large.dcm")
    with pytest.raises(ImageError, match="more than 170,000,000 pixels"):
        read_image(tmp_path / "large.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes()
    dataset.ImageComments = "x" * 10_000
    dataset.save_as(tmp_path / "packed.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "packed.dcm"), read_image(path))
    data = (tmp_path / "packed.dcm").read_bytes()
    assert len(data) < 5_000 and unpacks_beyond(data, 10_000) and not unpacks_beyond(data, 20_000)
    with pytest.raises(ImageError, match=r"packed\.dcm: more than 10,000 bytes when unpacked"):
        images.decode_image(data, "packed.dcm", accepted=images.Accepted(unpacked=10_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_image_is_read_in_bounded_memory(tmp_path):
    """166 million pixels of 16 bits, packed to 340 kB. docs/reliability.md states the time and the memory."""
    path = tmp_path / "large.png"
    path.write_bytes(png(12_900, 12_900, 12_900, depth=16, content=b"\x12"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_image(path).shape == (12_900, 12_900)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # kilobytes


def test_an_image_that_is_not_square_at_all_costs_one_row(tmp_path):
    """OpenCV refuses some sizes; such an error is a reason like others."""
    raw = tmp_path / "raw"
    pairs_folder(raw, 3)
    cv2.imwrite(str(raw / "images" / "001.png"), np.tile(radiograph(1, 8, 100), (1, 700)))
    report = prepare("pairs", tmp_path / "out", raw=raw, builder={"max_bad_fraction": 1}).report
    assert sum(report.records.values()) + len(report.rejected) == 3


@pytest.mark.parametrize("beam", [None, "--runner=DirectRunner"])
def test_flat_and_black_images_are_counted_and_named(tmp_path, beam, capsys):
    if beam:
        pytest.importorskip("apache_beam")
    raw = tmp_path / "raw"
    pairs_folder(raw, 4)
    cv2.imwrite(str(raw / "images" / "000.png"), np.zeros((40, 30), np.uint8))
    cv2.imwrite(str(raw / "images" / "001.png"), np.full((30, 40), 70, np.uint8))
    cv2.imwrite(str(raw / "images" / "002.png"), np.full((30, 40), 7000, np.uint16))
    prepared = prepare("pairs", tmp_path / "out", raw=raw, builder={"fractions": {"train": 1.0}}, beam=beam)
    assert prepared.report.flat == ("000.png", "001.png", "002.png") and prepared.report.records == {"train": 4}
    assert prepared.report.black == ("000.png", "002.png"), "deep pixels are scaled from their own minimum"
    how = ["--builder", 'fractions={"train": 1.0}', "--no_overview"]
    assert main(["prepare", "pairs", "--raw", str(raw), "--out", str(tmp_path / "out"), *how]) == 0
    assert "3 images have one grey value in all pixels (2 of them black)" in capsys.readouterr().out


def test_no_image_is_opened_without_the_names_of_formats():
    """Pillow would start Ghostscript for EPS, and try decoders that nobody needs."""
    root = Path(images.__file__).parents[1]
    calls = 0
    for path in [*root.glob("data_pipelines/**/*.py"), *root.glob("afloc_jax/**/*.py"), root / "launch.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert [keyword.arg for keyword in node.keywords] == ["formats"], path
                calls += 1
    assert calls == 2  # files of the program; the reader that exports carry with them


@pytest.mark.parametrize("kind", ["EPS", "GIF", "WEBP", "PPM"])
def test_other_formats_are_not_tried(kind):
    file = io.BytesIO()
    Image.fromarray(radiograph(1, 40, 30)).save(file, kind)
    with pytest.raises(ImageError, match="not an image in a known format"):
        images.decode_image(file.getvalue(), "a")


def test_dicom_is_shown_block_by_block_as_at_once(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    pixels = dicom_file(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.WindowCenter, dataset.WindowWidth = float(np.median(pixels)), float(np.ptp(pixels) / 3 + 2)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1.25, -10
    dataset.add_new("PixelPaddingValue", "US", int(pixels[0, 0]))
    dataset.save_as(tmp_path / "a.dcm")
    at_once = read_image(tmp_path / "a.dcm")
    assert len(np.unique(at_once)) > 10
    monkeypatch.setattr(dicom, "_BLOCK", 3 * pixels.shape[1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm"), at_once)
