"""Cropped and stretched squares against the image processors of transformers, and the way back."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from afloc_jax.heatmaps import boxes_from_map
from data_pipelines.frames import Frame
from data_pipelines.images import ImageError


def picture(height, width):
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.sin(np.arange(height) / 9), np.cos(np.arange(width) / 7)) * 50 + 120
    return np.clip(smooth + random.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(120, 90), (61, 200), (50, 50), (33, 35)])
@pytest.mark.parametrize("short", [0, 64])
def test_the_middle_is_that_of_transformers(height, width, short):
    frame = Frame(height, width, 48, "crop", "bicubic", short)
    processor = BitImageProcessorPil(
        size={"shortest_edge": short or 48}, crop_size={"height": 48, "width": 48}, do_rescale=False, do_normalize=False
    )
    image = picture(height, width)
    theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    for channel in theirs:
        np.testing.assert_array_equal(frame.to_square(image), channel)


@pytest.mark.parametrize("height, width", [(120, 90), (33, 35)])
def test_the_stretched_image_is_that_of_transformers(height, width):
    frame = Frame(height, width, 48, "stretch", "bilinear")
    processor = ViTImageProcessorPil(size={"height": 48, "width": 48}, do_rescale=False, do_normalize=False)
    image = picture(height, width)
    theirs = processor(Image.fromarray(image).convert("RGB"), return_tensors="np")["pixel_values"][0, 0]
    np.testing.assert_array_equal(frame.to_square(image), theirs)


@pytest.mark.parametrize("how, short", [("crop", 0), ("crop", 60), ("stretch", 0)])
@pytest.mark.parametrize("height, width", [(96, 160), (240, 100)])
def test_a_box_in_the_square_comes_back_to_where_it_was_in_the_image(how, short, height, width):
    frame = Frame(height, width, 48, how, "bilinear", short)
    box = [width // 2 - 12, height // 2 - 20, 30, 24]
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    (found,) = boxes_from_map(frame.map_to_original(frame.to_square(mask).astype(np.float32)), 127.5)
    assert np.abs(found - box).max() <= 3  # a pixel of the square is up to five of the image
    points = np.array([[0.0, 0.0], [width, height], [7.5, 3.25]])
    np.testing.assert_allclose(frame.points_to_original(frame.points_to_square(points)), points)
    inside = frame.points_to_square([[box[0], box[1]]])[0]
    np.testing.assert_array_equal(frame.box_to_square(box)[:2], np.floor(inside))


def test_what_the_square_does_not_show_has_the_least_value_and_no_box():
    frame = Frame(100, 200, 50)
    found = frame.map_to_original(np.linspace(1, 2, 2500).reshape(50, 50))
    assert found.shape == (100, 200) and (found[:, :50] == 1).all() and (found[:, 150:] == 1).all()
    assert (found[10:, 60:140] > 1).all()


def test_an_image_too_long_to_be_scaled_is_refused_before_memory_is_taken():
    with pytest.raises(ImageError, match="an image of 4000000 x 8 pixels is too long"):
        Frame(8, 4_000_000, 518).to_square(np.zeros((8, 4_000_000), np.uint8))
