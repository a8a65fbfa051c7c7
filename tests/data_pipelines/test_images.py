"""Image files become grey squares, and everything finds its way back."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import Geometry, ImageError, encode_png, read_image, read_mask

SIZES = [(224, 224), (100, 224), (1668, 1641), (395, 466), (17, 300), (9, 8), (1024, 1024), (777, 500), (3056, 2544)]


def picture(height=40, width=30, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def test_pixels_equal_the_release_on_real_radiographs(goldens, shared_data):
    arrays = np.load(goldens / "end_to_end.npz")
    for number, name in enumerate(json.loads((goldens / "end_to_end.json").read_text())["images"]):
        image = read_image(shared_data / "covid_lesions" / "images" / name)
        square = Geometry(*image.shape).to_square(image)
        np.testing.assert_array_equal(square, arrays[f"image{number}/pixels"], err_msg=name)


def test_boxes_equal_the_release(goldens):
    for row in np.load(goldens / "localization.npz")["boxes"]:
        geometry = Geometry(height=int(row[1]), width=int(row[0]))
        np.testing.assert_array_equal(geometry.box_to_square(row[2:6]), row[6:])
        corners = geometry.points_to_square([row[2:4], row[2:4] + row[4:6]])
        exact = np.concatenate([corners[0], corners[1] - corners[0]])
        assert (np.abs(exact - row[6:]) <= 1.5).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_every_colour_mode_gives_the_same_grey(tmp_path, mode):
    grey = picture()
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image = Image.fromarray(grey).convert("RGB").convert(mode) if mode != "P" else Image.fromarray(grey).convert("P")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, grey.shape).astype(np.uint8)))
    image.save(tmp_path / f"a.{suffix}")
    result = read_image(tmp_path / f"a.{suffix}")
    assert result.dtype == np.uint8 and result.shape == grey.shape
    np.testing.assert_allclose(result.astype(int), grey, atol=2)


def test_colour_becomes_luma(tmp_path):
    Image.new("RGB", (20, 20), (200, 100, 50)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (100, 4095), (30000, 30255)])
def test_deep_pixels_are_scaled_to_their_own_range(tmp_path, low, high):
    ramp = np.linspace(low, high, 900).round().astype(np.uint16).reshape(30, 30)
    cv2.imwrite(str(tmp_path / "a.png"), ramp)
    cv2.imwrite(str(tmp_path / "a.tif"), ramp)
    expected = np.rint((ramp.astype(float) - low) / (high - low) * 255)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_one_bit_float_and_rotated_pictures(tmp_path):
    bits = np.random.default_rng(0).random((20, 30)) > 0.5
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png"), bits * 255)
    Image.fromarray(np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)).save(tmp_path / "float.tif")
    assert read_image(tmp_path / "float.tif")[[0, -1], [0, -1]].tolist() == [0, 255]
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: stored rows are the picture's columns
    Image.fromarray(picture()).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture(), -1))


def damaged_files(folder):
    """Name -> bytes of files that must be refused."""
    formats = {}
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.fromarray(picture(200, 200)).save(buffer, kind)
        formats[kind.lower()] = buffer.getvalue()
    files = {f"cut{k}.{kind}": data[: len(data) * k // 100] for kind, data in formats.items() for k in (2, 50, 95)}
    one_pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(one_pixel, "PNG")
    files |= {"empty.png": b"", "text.png": b"not a picture", "one_pixel.png": one_pixel.getvalue()}
    files["broken.dcm"] = b"\0" * 128 + b"DICM" + b"junk"
    flipped = bytearray(formats["png"])
    flipped[len(flipped) // 2] ^= 0xFF
    files["flipped.png"] = bytes(flipped)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def test_damaged_files_are_refused_by_name(tmp_path):
    for name in damaged_files(tmp_path):
        with pytest.raises(ImageError, match=rf"^{name}: "):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"^absent.png: no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


def dicom_file(path, pixels, interpretation, bits, **tags):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, interpretation, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
def test_dicom_of_both_polarities_gives_bright_bones(tmp_path, dtype, bits):
    ramp = np.linspace(0, 2**bits - 1, 400).round().astype(dtype).reshape(20, 20)
    dicom_file(tmp_path / "two.dcm", ramp, "MONOCHROME2", bits)
    dicom_file(tmp_path / "one.dcm", ramp, "MONOCHROME1", bits)
    expected = np.rint(ramp.astype(float) * 255 / (2**bits - 1))
    np.testing.assert_array_equal(read_image(tmp_path / "two.dcm"), expected)
    np.testing.assert_allclose(read_image(tmp_path / "one.dcm"), 255 - expected, atol=1)


def test_dicom_windows_and_padding_are_applied(tmp_path):
    ramp = np.linspace(0, 4095, 400).round().astype(np.uint16).reshape(20, 20)
    dicom_file(tmp_path / "a.dcm", ramp, "MONOCHROME2", 12, WindowCenter=2048, WindowWidth=1024)
    image = read_image(tmp_path / "a.dcm")
    assert (image[ramp < 1530] == 0).all() and (image[ramp > 2560] == 255).all()
    dicom_file(tmp_path / "b.dcm", np.where(ramp > 4000, 4095, ramp // 4), "MONOCHROME1", 12, PixelPaddingValue=4095)
    image = read_image(tmp_path / "b.dcm")
    assert (image[ramp > 4000] == 0).all()
    assert image[0, 0] == 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [224, 97])
def test_points_return_exactly(size, side):
    geometry = Geometry(*size, side=side)
    points = np.random.default_rng(0).uniform([0, 0], [size[1], size[0]], (50, 2))
    np.testing.assert_allclose(geometry.points_to_original(geometry.points_to_square(points)), points, rtol=1e-12)
    corners = geometry.points_to_square([[0, 0], [size[1], size[0]]])
    inside = [geometry.left, geometry.top, geometry.left + geometry.inner_width, geometry.top + geometry.inner_height]
    np.testing.assert_allclose(corners.ravel(), inside)
    assert max(geometry.inner_height, geometry.inner_width) == side


@pytest.mark.parametrize("size", SIZES)
def test_a_map_returns_to_the_place_it_came_from(size):
    geometry = Geometry(*size)
    x, y = np.meshgrid(np.arange(224) + 0.5, np.arange(224) + 0.5)
    original = geometry.points_to_original(np.stack([x, y], -1))
    result = geometry.map_to_original((original[..., 0] + 2 * original[..., 1]).astype(np.float32))
    assert result.shape == size and result.dtype == np.float32 and np.isfinite(result).all()
    columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    expected = columns + 2 * rows  # a linear map stays itself, but for the clamped half cell at the border
    border = int(np.ceil(max(size) / 224)) + 1
    inner = np.s_[border:-border, border:-border]
    np.testing.assert_allclose(result[inner], expected[inner], atol=2e-3 * max(size))


def test_masks_keep_their_area_and_none_disappears():
    mask = np.zeros((1000, 800), bool)
    mask[100:400, 200:500] = True
    geometry = Geometry(1000, 800)
    square = geometry.mask_to_square(mask)
    assert square.dtype == np.bool_
    np.testing.assert_allclose(square.sum() / geometry.scale**2, mask.sum(), rtol=0.03)
    tiny = np.zeros((1000, 800), bool)
    tiny[777, 333] = True
    kept = np.argwhere(geometry.mask_to_square(tiny))
    np.testing.assert_array_equal(kept, [np.floor(geometry.points_to_square([333.5, 777.5]))[::-1]])
    assert not geometry.mask_to_square(np.zeros((1000, 800))).any()
    with pytest.raises(ValueError, match="this geometry is for"):
        geometry.mask_to_square(mask.T)
    with pytest.raises(ValueError, match="expected"):
        geometry.map_to_original(np.zeros((223, 224)))


def test_masks_of_any_mode_are_read(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[5:9, 3:20] = True
    for mode in ("1", "L", "RGB", "RGBA", "P", "I;16"):
        image = Image.fromarray(mask.astype(np.uint16) * 900) if mode == "I;16" else Image.fromarray(mask).convert(mode)
        image.save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask, err_msg=mode)
    (tmp_path / "m.png").write_bytes(encode_png(mask))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
