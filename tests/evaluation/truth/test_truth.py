"""Truth files, well formed, unusual and broken."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Drawing
from data_pipelines.images import Geometry
from data_pipelines.regions import decode_segmentation
from tests.evaluation.truth.coco_truth import COCO, changed


def test_boxes_of_one_phrase_on_one_image_are_one_sample(write):
    edema, effusion, other = read_truth(write(COCO))
    assert [t.id for t in (edema, effusion, other)] == ["files/a.jpg#0", "b.jpg#0", "files/a.jpg#1"]
    assert (edema.category, effusion.category, other.category) == ("Edema", "Effusion", "Effusion")
    assert edema.key == "files/a.jpg\tmild edema"
    expected = np.zeros((224, 224), int)  # scale 0.5, (224 - 150) // 2 = 37 rows of padding above
    for left in (50, 70):
        expected[57:97, left : left + 30] += 1
    np.testing.assert_array_equal(edema.mask, expected)
    assert edema.mask.max() == 2


def test_boxes_are_floored_after_scaling_and_padding(write):
    _, effusion, _ = read_truth(write(COCO))
    scale = 224 / 90
    left = (224 - int(56 * scale)) // 2
    rows, columns = np.nonzero(effusion.mask)
    assert (rows.min(), columns.min()) == (int(20 * scale), int(10 * scale + left))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (int(30 * scale), int(20 * scale))


def test_a_box_thinner_than_a_pixel_keeps_one_unless_compatible(write):
    path = write(changed(0, bbox=[100, 40, 1, 80]))
    assert read_truth(path)[0].mask[:, 50].sum() == 40
    assert read_truth(path, Drawing(compatible=True))[0].mask[:, 50].sum() == 0


def test_a_category_stands_in_for_a_missing_phrase(write):
    sample = read_truth(write(changed(1, label_text=None)))[1]
    assert sample.key == "b.jpg\teffusion"


def lesion(height=300, width=448):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[100:201, 50:93] = 1
    mask[20:24, 400:440] = 1
    return mask


@pytest.mark.parametrize("kind", ["compressed", "runs", "polygon"])
def test_a_segmentation_is_used_instead_of_its_box(write, kind):
    mask = lesion()
    compressed = coco_mask.encode(mask)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    segmentation = {
        "compressed": {"size": [300, 448], "counts": compressed["counts"].decode()},
        "runs": {"size": [300, 448], "counts": np.diff([0, *changes, flat.size]).tolist()},
        "polygon": [[50, 100, 93, 100, 93, 201, 50, 201], [400, 20, 440, 20, 440, 24, 400, 24]],
    }[kind]
    sample = read_truth(write(changed(0, segmentation=segmentation, label_text="alone")))[0]
    expected = Geometry(300, 448).mask_to_square(mask)
    if kind == "polygon":  # pycocotools rounds corners its own way: a row or column of pixels
        assert np.count_nonzero(sample.mask != expected) <= 0.05 * expected.sum()
    else:
        np.testing.assert_array_equal(sample.mask, expected)


def test_a_polygon_that_only_repeats_the_box_leaves_the_published_rounding(write):
    box = {"bbox": [101, 41, 61, 81], "segmentation": [[101, 41, 162, 41, 162, 122, 101, 122]]}
    with_polygon = read_truth(write(changed(0, **box)))[0]
    without = read_truth(write(changed(0, bbox=box["bbox"])))[0]
    np.testing.assert_array_equal(with_polygon.mask, without.mask)


@pytest.mark.parametrize(
    "fields",
    [
        {"bbox": None},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 0, 5]},
        {"bbox": [1, 2, "3", 5]},
        {"bbox": [1, 2, 1e300, 5]},
        {"bbox": [1, 2, float("nan"), 5]},
        {"bbox": [900, 2, 10, 5]},
        {"bbox": [-90, 2, 10, 5]},
        {"category_id": 9},
        {"image_id": 9},
        {"image_id": [1]},
        {"image_id": None},
        {"label_text": 3},
        {"segmentation": {"size": [300, 448], "counts": ""}},
        {"segmentation": {"size": [300, 448], "counts": "zzzz"}},
        {"segmentation": {"size": [300, 448], "counts": "\u00e9"}},
        {"segmentation": {"size": [300, 448], "counts": [5, 10**30]}},
        {"segmentation": {"size": [300, 448], "counts": [300 * 448 + 1, -1]}},
        {"segmentation": {"size": [300, 448]}},
        {"segmentation": {"size": [448, 300], "counts": [300 * 448]}},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [[900, 2, 950, 2, 950, 9]]},
        {"segmentation": [[1, 2, 1e30, 2, 1e30, 1e30]]},
        {"segmentation": {"size": [300, 448], "counts": [300 * 448]}},
        {"segmentation": [[1, 2, 3, 4, float("nan"), 6]]},
        {"segmentation": [["a"] * 8]},
        {"segmentation": [[1, 2, 10**400, 4, 5, 6]]},
        {"segmentation": {"size": [300, 448], "counts": {}}},
        {"segmentation": {"size": [300, 448], "counts": True}},
        {"segmentation": "text"},
        {"segmentation": 5},
    ],
)
def test_a_broken_annotation_is_refused_by_its_number_without_its_phrase(write, fields):
    with pytest.raises(UserError, match="annotation 10") as caught:
        read_truth(write(changed(0, **fields)))
    assert "edema" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON at line 1"),
        ("{", "not valid JSON"),
        ("[]", "neither COCO"),
        ("{}", "neither COCO"),
        ('{"a": 3}', "neither COCO"),
        ({**COCO, "annotations": []}, "no annotated finding"),
        ({**COCO, "images": {}}, "`images` is missing or of the wrong type"),
        ({**COCO, "images": [{"id": 1}]}, "annotation 10"),
        ({**COCO, "images": [{**COCO["images"][0], "height": 0}]}, "448 x 0"),
        ({**COCO, "images": [{**COCO["images"][0], "height": 10**7}]}, "448 x 10000000"),
        ({**COCO, "categories": [{"id": 1}]}, "category 0: field `name`"),
        ({**COCO, "annotations": [None]}, "annotation 0"),
        ({**COCO, "annotations": [*COCO["annotations"], COCO["annotations"][1]]}, "4: it has the id of annotation 1"),
        ({**COCO, "images": [*COCO["images"], COCO["images"][0]]}, "1 images have the id of another image"),
        ({**COCO, "categories": [*COCO["categories"], COCO["categories"][0]]}, "1 categories have the id of another"),
        (
            '{"images": [], "categories": [],\n "images": []}',
            "a key comes twice in the object that ends at line 2, column 14",
        ),
        ("[" * 100_000, "nested too deeply"),
        ({"a": {"Edema": {"size": [100, 200], "counts": [2**63 - 1, 2**63 - 1, 20002]}}}, "do not add up to its image"),
        ({"a": {"Edema": {"size": [10**9, 10**9], "counts": [10**18]}}}, "its size is 1000000000 x 1000000000"),
        (
            {"a": {"Edema": {"size": [2, 2], "counts": [4]}, "edema": {"size": [2, 2], "counts": [0, 4]}}},
            "image 0: two classes differ in case alone",
        ),
        ({"a": {"Edema": {"size": [2, 2], "counts": "zz"}}}, "image 0, class 0: "),
        ({"a": {"Edema": {"size": "2", "counts": "zz"}}}, "image 0, class 0: "),
        ({"a": {"Edema": {"size": [2, 2], "counts": [4]}}}, "no annotated finding"),
    ],
)
def test_a_broken_file_is_refused_with_a_reason(write, content, message):
    with pytest.raises(UserError, match=message):
        read_truth(write(content))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, -60, 40, 50], "its box lies outside its image of 448 x 300 pixels"),  # in the padding of the square
        ([448, 0, 5, 5], "its box lies outside"),
        ([10, 10, 0, 5], "positive width and height"),
        ([10, 10, -3, 5], "positive width and height"),
        ([10, float("nan"), 3, 5], "must be"),
        ([10, 10, float("inf"), 5], "must be"),
        ([10, 10, 10**400, 5], "must be"),
        ([10, 10, 3], "must be"),
        ([True, 10, 3, 5], "must be"),
    ],
)
def test_a_box_that_is_none_or_lies_outside_its_image_is_refused(write, box, message):
    with pytest.raises(UserError, match=rf"annotation 10: .*{message}"):
        read_truth(write(changed(0, bbox=box, segmentation=None)))


@pytest.mark.parametrize("count", [255, 256])
def test_a_phrase_may_have_255_regions_on_one_pixel(write, count):
    """The counts have a byte; the 256th region would wrap to outside."""
    boxes = [COCO["annotations"][0] | {"id": number, "bbox": [10, 10, 90, 90]} for number in range(count)]
    path = write(COCO | {"annotations": [{k: v for k, v in box.items() if k != "segmentation"} for box in boxes]})
    if count == 255:
        assert read_truth(path)[0].mask.max() == 255
    else:
        with pytest.raises(UserError, match="annotation 255: more than 255 regions of its phrase cover one pixel"):
            read_truth(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: cannot be read \(No such file"):
        read_truth(tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"absent\.npz: cannot read the heat maps \(No such file"):
        HeatmapFile(tmp_path / "absent.npz")


def test_chexlocalize_masks_are_read_and_negatives_left_out(shared_data):
    path = shared_data / "chexlocalize_sample" / "gt_segmentations_val.json"
    truths = read_truth(path)
    content = json.loads(path.read_text())
    positive = {
        f"{image}\t{name.lower()}": coco_mask.decode(rle)
        for image, classes in content.items()
        for name, rle in classes.items()
        if coco_mask.area(rle)
    }
    assert {truth.key for truth in truths} == set(positive)
    for truth in truths:
        mask = positive[truth.key]
        assert (truth.height, truth.width) == mask.shape
        geometry = Geometry(*mask.shape)
        np.testing.assert_array_equal(truth.mask, geometry.mask_to_square(mask))


def test_samples_that_are_left_out_are_counted(write, capsys):
    truth = write(changed(1, bbox=[]))
    assert len(read_truth(truth, negatives=True)) == 3 and capsys.readouterr().err == ""
    assert len(read_truth(truth)) == 2
    assert "afloc: 1 of 3 samples of truth.json have no region and are left out" in capsys.readouterr().err


def test_every_mask_of_the_published_sample_decodes_as_pycocotools_decodes_it(shared_data):
    entries = 0
    for name in ("gt_segmentations_val.json", "gradcam_segmentations_val_sample.json"):
        for image, classes in json.loads((shared_data / "chexlocalize_sample" / name).read_text()).items():
            for category, rle in classes.items():
                decoded = decode_segmentation(rle, *rle["size"], f"{image} {category}")
                np.testing.assert_array_equal(decoded, coco_mask.decode(rle))
                entries += 1
    assert entries == 40


WRAPS = {"a.png": {"Edema": {"size": [100, 200], "counts": [2**63 - 1, 2**63 - 1, 20002]}}}


@pytest.mark.parametrize("prediction", [False, True])
def test_run_lengths_whose_sum_wraps_end_the_command_with_a_message(write, tmp_path, prediction):
    """It ended in a segmentation fault, of the truth as of the segmentations that are scored; hence a process."""
    good = {"a.png": {"Edema": {"size": [100, 200], "counts": [5, 19995]}}}
    truth, other = write(good if prediction else WRAPS), write(WRAPS if prediction else good, "predicted.json")
    given = ["--truth", str(truth), "--segmentations", str(other), "--out", str(tmp_path / "out")]
    command = "import sys; from afloc_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", command, "score", "--protocol", "chexlocalize", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file = "predicted.json" if prediction else "truth.json"
    what = "image 0, class 0: the run lengths of an RLE do not add up to its image"
    assert done.returncode == 1 and done.stderr.strip().split("\n")[-1] == f"afloc: {file}, {what}"
