"""Grey values as the published release reads them, and equalised histograms."""

import cv2
import numpy as np
import pytest
from PIL import Image
from raw_folders import pairs_folder, radiograph

from afloc_jax.errors import UsageError, UserError
from data_pipelines.building.build import Call
from data_pipelines.images import Geometry, ImageError, equalized, read_image
from data_pipelines.prepared import open_source, prepare
from data_pipelines.settings import DataSettings
from tests.reference.release_equalize import equalize

ALL_TRAIN = {"fractions": {"train": 1.0}}


def colours(height=41, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("folder", "count"), [("covid_lesions", 96), ("cxr_pairs", 665)])
def test_every_file_has_the_grey_values_of_opencv(shared_data, folder, count):
    files = sorted(path for path in (shared_data / folder).rglob("*") if path.suffix in (".png", ".jpg", ".jpeg"))
    assert len(files) == count
    for path in files:
        np.testing.assert_array_equal(read_image(path, "cv2"), cv2.imread(str(path), 0), err_msg=path.name)


def test_the_default_rule_gives_other_values_where_a_film_was_stored_in_colour(shared_data):
    """In 10 of 40 films, in few pixels, mostly by a level or two."""
    films = sorted((shared_data / "covid_lesions" / "images").iterdir())
    apart = {film.name: np.abs(read_image(film).astype(int) - read_image(film, "cv2")) for film in films}
    other = {name: difference for name, difference in apart.items() if difference.any()}
    assert len(apart) == 40 and len(other) == 10
    assert sorted(difference.max() for difference in other.values()) == [1, 1, 1, 1, 1, 1, 2, 4, 10, 50]
    assert all((difference > 0).mean() < 0.003 for difference in other.values())


def test_colour_deep_turned_and_transparent_files_have_them_too(tmp_path):
    picture, grey = colours(), radiograph(1, 41, 30)
    deep = np.random.default_rng(2).integers(0, 65536, (41, 30)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "colour.png"), picture)
    cv2.imwrite(str(tmp_path / "colour.jpg"), picture)
    cv2.imwrite(str(tmp_path / "colour.bmp"), picture)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    cv2.imwrite(str(tmp_path / "deep_colour.png"), np.repeat(deep[..., None], 3, axis=2))
    Image.fromarray(np.dstack([picture, grey])).save(tmp_path / "alpha.png")
    Image.fromarray(picture).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(grey).save(tmp_path / "turned.jpg", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_image(path, "cv2"), cv2.imread(str(path), 0), err_msg=path.name)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", "cv2"), deep >> 8)  # not scaled to its own range
    assert read_image(tmp_path / "turned.jpg", "cv2").shape == (30, 41)
    assert (read_image(tmp_path / "colour.jpg") != read_image(tmp_path / "colour.jpg", "cv2")).any()


def test_what_opencv_reads_in_part_or_not_at_all_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), radiograph(0, 200, 200))
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a\.jpg: damaged or truncated"):
        read_image(tmp_path / "a.jpg", "cv2")


NOISE = radiograph(3, 60, 50)
IMAGES = [NOISE, NOISE // 3, np.where(NOISE < 128, 0, cv2.GaussianBlur(NOISE, (0, 0), 3))]  # the last with a background


@pytest.mark.parametrize("number", range(len(IMAGES)))
def test_equalised_histograms_are_those_of_opencv_and_of_the_release(number):
    image = IMAGES[number]
    np.testing.assert_array_equal(equalized(image, "cv2"), cv2.equalizeHist(image))
    np.testing.assert_array_equal(equalized(image, "release"), equalize(image))
    np.testing.assert_array_equal(equalized(image, "none"), image)
    assert (equalized(image, "cv2") != image).any() and (equalized(image, "release") != image).any()


def test_an_image_of_zeros_stays_one():
    black = np.zeros((9, 8), np.uint8)
    assert not equalized(black, "release").any() and not equalized(black, "cv2").any()


@pytest.fixture
def coloured(tmp_path):
    """Raw files whose grey values depend on who reads them."""
    pairs_folder(tmp_path / "raw", 6)
    for path in (tmp_path / "raw" / "images").iterdir():
        cv2.imwrite(str(path), colours(seed=int(path.stem)))
    return tmp_path


def test_records_are_made_from_the_grey_values_and_the_histogram_that_are_asked_for(coloured):
    raw, out = coloured / "raw", coloured / "out"
    data = DataSettings(grey="cv2", equalize="release", cleaning="release")
    assert data.reading == {"grey": "cv2", "equalize": "release", "compatible": True}
    source = open_source("pairs", out, "train", raw=raw, builder=ALL_TRAIN, reading=data.reading)
    assert source.folder == prepare("pairs", out, raw=raw, builder={**ALL_TRAIN, **data.reading}).folder
    for record in source:
        image = equalized(cv2.imread(str(raw / "images" / f"{record.id[:3]}.png"), 0), "release")
        np.testing.assert_array_equal(record.image, Geometry(*image.shape).to_square(image))
    default = open_source("pairs", out, "train", raw=raw, builder=ALL_TRAIN, reading=DataSettings().reading)
    assert DataSettings().reading == {} and default.folder != source.folder
    assert any((one.image != other.image).any() for one, other in zip(source, default, strict=True))
    # Without arguments, records with the default grey values come first.
    assert open_source("pairs", out, "train").folder == default.folder


def test_records_that_are_read_otherwise_are_not_taken_and_the_remedy_names_how(coloured):
    prepare("pairs", coloured / "out", raw=coloured / "raw")
    with pytest.raises(UserError, match=r"run: afloc prepare pairs --raw FOLDER --out .* --builder grey=cv2$"):
        open_source("pairs", coloured / "out", "train", reading={"grey": "cv2"})


def test_reports_that_were_cleaned_in_another_order_are_not_taken(tmp_path):
    """Folders of earlier versions with compatible=true have another hash; all others keep theirs."""
    calls = [Call.of("pairs", tmp_path, "", {**ALL_TRAIN, **more}) for more in ({}, {"compatible": True})]
    assert [call.content["arguments"].get("compatible") for call in calls] == [None, "findings first"]
    assert calls[1].arguments["compatible"] is True and calls[1].inputs["arguments"]["compatible"] is True


def test_phantoms_are_drawn_grey_and_have_no_histogram_to_equalise(tmp_path):
    reading = DataSettings(grey="cv2", cleaning="release").reading
    assert Call.of("phantom", tmp_path, "", {"test": 3}, reading=reading).arguments == {"test": 3}
    with pytest.raises(UsageError, match="phantom has no argument 'equalize'"):
        Call.of("phantom", tmp_path, "", None, reading=DataSettings(equalize="cv2").reading).check()
    # Masks have no reports to clean, but files to read.
    assert Call.of("masks", tmp_path, "", None, reading=reading).arguments == {"grey": "cv2"}
