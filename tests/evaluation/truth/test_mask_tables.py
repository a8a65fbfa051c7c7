"""Truth as a table of mask files."""

import cv2
import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Drawing
from data_pipelines.images import Geometry


@pytest.fixture
def table(tmp_path):
    """Two masks of one finding, one beside the table and one in its folder, and a row without a mask."""
    (tmp_path / "masks").mkdir()
    first, second = np.zeros((300, 448), np.uint8), np.zeros((300, 448), np.uint8)
    first[100:201, 50:93], second[20:24, 400:440] = 255, 255
    cv2.imwrite(str(tmp_path / "first.png"), first)
    cv2.imwrite(str(tmp_path / "masks" / "second.png"), second)
    path = tmp_path / "lesions.csv"
    path.write_text(
        "image,mask,finding,prompt\n"
        "a.jpg,first.png,Edema,Mild edema\na.jpg,second.png,Edema,Mild edema\nb.jpg,,Edema,\n"
    )
    return path, (first | second) > 0


def test_mask_files_of_one_finding_are_one_sample(table):
    path, mask = table
    (sample,) = read_truth(path)
    assert (sample.key, sample.category, sample.height, sample.width) == ("a.jpg\tmild edema", "Edema", 300, 448)
    np.testing.assert_array_equal(sample.mask, Geometry(300, 448).mask_to_square(mask))
    touched = Geometry(300, 448).to_square(mask.astype(np.float32)) > 0
    np.testing.assert_array_equal(read_truth(path, Drawing(compatible=True))[0].mask, touched)


def test_empty_mask_files_are_counted_where_they_are_left_out(table, capsys):
    path, _ = table
    cv2.imwrite(str(path.parent / "empty.png"), np.zeros((20, 30), np.uint8))
    assert len(read_truth(path)) == 1 and capsys.readouterr().err == ""
    path.write_text(path.read_text() + "c.jpg,empty.png,Edema,\n")
    assert len(read_truth(path, negatives=True)) == 3 and capsys.readouterr().err == ""
    assert len(read_truth(path)) == 1
    assert "afloc: 1 of 3 samples of lesions.csv have no region and are left out" in capsys.readouterr().err


def test_a_table_may_name_patients(table):
    assert [truth.patient for truth in read_truth(table[0], negatives=True)] == ["", ""]
    table[0].write_text(
        "patient,image,mask,finding\np1,a.jpg,first.png,Edema\np1,a.jpg,second.png,Edema\np2,b.jpg,,Edema\n"
    )
    assert [truth.patient for truth in read_truth(table[0], negatives=True)] == ["p1", "p2"]


def test_a_row_without_a_mask_is_a_negative(table):
    _, absent = read_truth(table[0], negatives=True)
    assert (absent.key, absent.present, absent.mask.sum()) == ("b.jpg\tedema", False, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,finding\na,Edema\n", "lacks the column mask"),
        ("image,mask,finding\na,none.png,Edema\n", "row 2, column mask: no such file beside the table"),
        ("image,mask,finding\na,first.png,\n", "row 2, column finding: is empty"),
        ("image,mask,finding\na,,Edema\n", "no annotated finding"),
        ('image,mask,finding\na,"first.png,Edema\n', "row 2, column mask: the quote of a cell is unbalanced"),
        (
            "image,mask,finding,patient\na,first.png,Edema,p1\na,,Edema,p2\n",
            "row 3, column patient: an earlier row names another patient",
        ),
    ],
)
def test_a_broken_table_is_refused_with_a_reason(table, text, message):
    table[0].write_text(text)
    with pytest.raises(UserError, match=message):
        read_truth(table[0])
