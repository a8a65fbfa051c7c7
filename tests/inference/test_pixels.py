"""Equal pixels give equal squares, whether they come as a file, a PIL image or an array."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from afloc_jax.errors import UsageError, UserError
from afloc_jax.inference.pixels import pixels_of
from data_pipelines.images import read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(300, 5000, (20, 30), dtype=np.uint16)


def turned(image: Image.Image) -> Image.Image:
    """The image as a camera stores it that was held upright."""
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return Image.open(file, formats=["PNG"])


PICTURES = {
    "L": Image.fromarray(GREY),
    "RGB": Image.fromarray(COLOUR),
    "RGBA": Image.fromarray(np.dstack([COLOUR, GREY])),
    "LA": Image.fromarray(np.dstack([GREY, GREY])),
    "1": Image.fromarray(GREY > 100),
    "P": Image.fromarray(COLOUR).quantize(17),
    "16 bits": Image.fromarray(DEEP),
    "turned": turned(Image.fromarray(COLOUR)),
}


@pytest.mark.parametrize("rule", ["luma", "cv2"])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_pil_image_has_the_pixels_of_its_file(kind, rule, tmp_path):
    image = PICTURES[kind]
    image.save(tmp_path / "a.png", **({"exif": image.getexif()} if kind == "turned" else {}))
    expected = read_image(tmp_path / "a.png", rule)
    assert expected.shape == ((30, 20) if kind == "turned" else (20, 30)) and len(np.unique(expected)) > 1
    np.testing.assert_array_equal(pixels_of(image, rule), expected)
    with Image.open(tmp_path / "a.png", formats=["PNG"]) as opened:  # not decoded yet
        np.testing.assert_array_equal(pixels_of(opened, rule), expected)


def test_modes_without_a_png_are_read_but_not_as_opencv_would():
    float_image = Image.fromarray(GREY.astype(np.float32) / 7)
    low, high = int(GREY.min()), int(GREY.max())
    np.testing.assert_array_equal(pixels_of(float_image), np.rint((GREY - low) * (255 / (high - low))))
    assert pixels_of(Image.fromarray(COLOUR).convert("CMYK")).shape == (20, 30)
    with pytest.raises(UsageError, match=r"^images\[4\]: PNG has no mode F.*give the file"):
        pixels_of(float_image, "cv2", "images[4]")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_between_0_and_1_are_the_grey_values_over_255(kind):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels_of(every.astype(kind) / kind(255)), every)
    np.testing.assert_array_equal(pixels_of(np.full((8, 8), 1.001)), 255)  # interpolation reaches beyond a little
    coloured = COLOUR.astype(kind) / kind(255)
    np.testing.assert_array_equal(pixels_of(coloured), pixels_of(Image.fromarray(COLOUR)))


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32", ">u2"])
def test_deep_arrays_are_scaled_as_deep_files_are(kind, tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_of(DEEP.astype(kind)), read_image(tmp_path / "a.png"))


def test_arrays_of_other_forms_are_the_same_image():
    expected = pixels_of(GREY)
    assert expected is GREY
    for same in (GREY[..., None], np.dstack([GREY, COLOUR[..., 0]]), jnp.asarray(GREY), torch.from_numpy(GREY)):
        np.testing.assert_array_equal(pixels_of(same), expected)
    luma = pixels_of(Image.fromarray(COLOUR))
    for same in (COLOUR, np.dstack([COLOUR, GREY]), np.asfortranarray(COLOUR)):
        np.testing.assert_array_equal(pixels_of(same), luma)
    assert not np.array_equal(pixels_of(COLOUR[..., ::-1]), luma)  # red comes first


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (GREY * 1.0, r"floats have black at 0 and white at 1, but these reach from 0 to 255; divide .* by 255"),
        (GREY / 255 - 0.5, "but these reach from -0.5 to 0.5"),
        (np.where(GREY > 9, GREY / 255, np.nan), "holds NaN or infinity"),
        (np.where(GREY > 9, GREY / 255, np.inf).astype(np.float32), "holds NaN or infinity"),
        (GREY[None], r"must be grey \[H, W\], or .*this one is uint8 \[1, 20, 30\]"),
        (COLOUR.transpose(2, 0, 1), r"this one is uint8 \[3, 20, 30\]"),
        (GREY[0], r"this one is uint8 \[30\]"),
        (np.zeros((0, 5), np.uint8), "5 x 0 pixels is too small"),
        (GREY[:7], r"30 x 7 pixels is too small \(at least 8 x 8\)"),
        (Image.fromarray(GREY[:7]), r"30 x 7 pixels is too small"),
        (GREY.astype(np.int64), r"must be uint8, floats between 0 and 1, or .*this one is int64 \[20, 30\]"),
        (GREY > 3, r"this one is bool"),
        (np.dstack([DEEP] * 3), r"this one is uint16 \[20, 30, 3\]"),
        (GREY.tolist(), "is no image but a list; give a file, a PIL image or an array"),
        (None, "is no image but a NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(image, words):
    with pytest.raises(UserError, match=rf"^images\[3\].*{words}"):
        pixels_of(image, name="images[3]")


def test_a_pil_image_that_is_cut_off_or_closed_is_one_line(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (300, 300), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:20_000])
    closed = Image.open(tmp_path / "a.png", formats=["PNG"])
    closed.close()
    for image in (Image.open(tmp_path / "b.png", formats=["PNG"]), closed):
        with pytest.raises(UserError, match=r"^images\[0\]: the PIL image cannot be decoded \("):
            pixels_of(image, name="images[0]")
