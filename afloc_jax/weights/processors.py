"""preprocessor_config.json of Hugging Face: how the images of a foreign encoder become its pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from afloc_jax.errors import UserError
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from afloc_jax.weights.config import LARGEST_CONFIG, Preprocessing
from data_pipelines.frames import RESAMPLES

PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Processor:
    """The rule by which a foreign encoder reads images.

    Attributes:
        preprocessing: how an image becomes a square.
        mean, std: pixels from [0, 1] become (x - mean) / std; one value where all channels have the same.
    """

    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Networks of torchxrayvision have one input channel and read pixels in -1024 ... 1024. They are files without a config.
XRAYVISION_STD = 0.5 / 1024
XRAYVISION_SIDES = {"densenet": 224, "resnet": 512}  # pixels, by the family


def read_processor(folder: Path | None) -> Processor | None:
    """The rule in preprocessor_config.json of a folder; None if there is none.

    Raises UserError where it cannot be followed. The message names the field.
    """
    path = folder / PROCESSOR if folder else None
    if path is None or not path.is_file():
        return None
    stated = read_json(path, "copy the folder again", LARGEST_CONFIG)
    if not isinstance(stated, dict):
        raise UserError(f"{path}: not a mapping; copy the folder again")
    try:
        return _processor(stated)
    except (_Unknown, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: {error}; this program resizes, crops the middle and scales pixels") from None


class _Unknown(Exception):
    """A rule that cannot be followed."""


def _refuse(key: str, stated: Mapping[str, Json]) -> NoReturn:
    raise _Unknown(f"{key} = {stated.get(key)!r}, with which images do not become squares that are known")


def _processor(stated: Mapping[str, Json]) -> Processor:
    for key, needed in (("do_resize", True), ("do_rescale", True)):
        if stated.get(key, needed) is not needed:
            _refuse(key, stated)
    if abs(_number(stated.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        _refuse("rescale_factor", stated)
    normalizes = stated.get("do_normalize", True)
    mean = _channels(stated.get("image_mean", 0.5)) if normalizes else (0.0,)
    std = _channels(stated.get("image_std", 0.5)) if normalizes else (1.0,)
    if len(mean) != len(std):  # one of them is equal in all channels
        mean, std = (values * 3 if len(values) == 1 else values for values in (mean, std))
    return Processor(square_rule(stated), mean, std)


def square_rule(stated: Mapping[str, Json]) -> Preprocessing:
    """How the fields of a preprocessor_config.json, ours or another, make a square of an image."""
    number, size = stated.get("resample", 2), stated.get("size")
    if number == "area" and isinstance(size, dict) and type(side := size.get("longest_edge")) is int:
        return Preprocessing(side)
    if type(number) is not int or not 0 <= number < len(RESAMPLES):
        _refuse("resample", stated)
    resample = RESAMPLES[number]
    size = size if isinstance(size, dict) else {"height": size, "width": size}
    crops = stated.get("do_center_crop", stated.get("crop_size") is not None)
    if stated.get("do_pad") or not size.keys() <= {"height", "width", "shortest_edge"}:
        _refuse("do_pad" if stated.get("do_pad") else "size", stated)
    if "shortest_edge" in size:
        crop = stated.get("crop_size")
        height, width = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
        short = size["shortest_edge"]
        if not crops or type(height) is not int or type(short) is not int or height != width or height > short:
            _refuse("crop_size", stated)
        return Preprocessing(height, geometry="crop", resample=resample, short_side=short)
    side = size["height"]
    if type(side) is not int or size.get("width") != side:
        _refuse("size", stated)
    if crops and stated.get("crop_size") not in (side, {"height": side, "width": side}):
        _refuse("crop_size", stated)
    return Preprocessing(side, geometry="stretch", resample=resample)


def _channels(value: Json) -> tuple[float, ...]:
    """One value for all channels where all have the same, else three."""
    values = tuple(_number(one) for one in (value if isinstance(value, list) else [value]))
    if len(values) not in (1, 3):
        raise _Unknown(f"image_mean or image_std has {len(values)} values; 1 or 3 are supported")
    return values[:1] if len({*values}) == 1 else values


def _number(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unknown(f"{value!r} stands where a number should be")
    return float(value)
