"""A small level of a slide is read; the large ones are never decoded."""

import struct

import numpy as np
import pytest
from PIL import Image
from raw_folders import radiograph

from data_pipelines import slides
from data_pipelines.images import ImageError, read_image
from data_pipelines.slides import read_slide


def slide_file(path, sizes, seed=0, mode="RGB", compression=None):
    """A TIFF with a page per size (width, height), largest first. Returns the levels as grey arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [
        Image.merge("RGB", [Image.fromarray(radiograph(100 * seed + 10 * k + c, h, w)) for c in range(3)]).convert(mode)
        for k, (w, h) in enumerate(sizes)
    ]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    return [np.asarray(page.convert("RGB").convert("L")) for page in pages]


def claim_size(path, width, height):
    """Overwrites width and height in the first page of a little-endian TIFF: a slide whose pixels are not there."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, place)[0]
        if tag in (256, 257):
            struct.pack_into("<HII", data, place + 2, 4, 1, width if tag == 256 else height)
    path.write_bytes(data)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize(("side", "level"), [(224, 2), (256, 2), (257, 1), (1024, 0), (5000, 0), (100, 3)])
def test_the_smallest_level_that_is_large_enough_is_read(tmp_path, side, level, compression):
    sizes = [(1024, 768), (512, 384), (256, 192), (128, 96)]
    levels = slide_file(tmp_path / "a.tif", sizes, compression=compression)
    np.testing.assert_array_equal(read_slide(tmp_path / "a.tif", side), levels[level])


def test_levels_compressed_as_scanners_do_are_read(tmp_path):
    gradient = np.linspace(30, 220, 400, dtype=np.uint8)[None].repeat(300, axis=0)
    page = Image.merge("RGB", [Image.fromarray(channel) for channel in (gradient, gradient // 2, 255 - gradient)])
    page.save(
        tmp_path / "a.tif", save_all=True, append_images=[page.resize((200, 150))], compression="jpeg", quality=95
    )
    expected = np.asarray(page.resize((200, 150)).convert("L")).astype(int)
    assert abs(read_slide(tmp_path / "a.tif", 150) - expected).max() <= 4


def test_labels_and_photographs_in_the_file_are_no_levels(tmp_path):
    levels = slide_file(tmp_path / "a.tif", [(800, 400), (300, 300), (401, 200), (240, 90)])
    np.testing.assert_array_equal(read_slide(tmp_path / "a.tif", 224), levels[2])


def test_a_plain_tiff_is_read_as_any_image(tmp_path):
    slide_file(tmp_path / "a.tif", [(300, 200)])
    np.testing.assert_array_equal(read_slide(tmp_path / "a.tif", 224), read_image(tmp_path / "a.tif"))


def test_gigapixels_are_never_decoded(tmp_path):
    levels = slide_file(tmp_path / "a.tif", [(800, 600), (400, 300)])
    claim_size(tmp_path / "a.tif", 120_000, 90_000)
    np.testing.assert_array_equal(read_slide(tmp_path / "a.tif", 224), levels[1])
    slide_file(tmp_path / "b.tif", [(800, 600)])
    claim_size(tmp_path / "b.tif", 120_000, 90_000)
    with pytest.raises(ImageError, match=r"b\.tif: .* 120000 x 90000, too many to decode; write a pyramid.*vips"):
        read_slide(tmp_path / "b.tif", 224)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0 not a slide at all", b"\x89PNG\r\n\x1a\n", None])
def test_broken_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"^a\.tif: "):
        read_slide(tmp_path / "a.tif", 224)


def test_truncated_levels_and_specks_are_named(tmp_path, monkeypatch):
    slide_file(tmp_path / "a.tif", [(300, 200)])
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.tif: damaged"):
        read_slide(tmp_path / "a.tif", 224)
    (tmp_path / "a.tif").write_bytes(data)
    monkeypatch.setattr(slides, "LARGEST_LEVEL", 59_999)
    with pytest.raises(ImageError, match="300 x 200, too many"):
        read_slide(tmp_path / "a.tif", 224)
    slide_file(tmp_path / "b.tif", [(300, 4)])
    with pytest.raises(ImageError, match="300 x 4 pixels is too small"):
        read_slide(tmp_path / "b.tif", 224)
