"""Patients get names that nobody finds without the key, which is made once per directory or given."""

import hashlib
import os
from pathlib import Path

import pytest
from raw_folders import pairs_folder

from afloc_jax.errors import UserError
from data_pipelines.building.pseudonyms import KEY_FILE, pseudonym
from data_pipelines.prepared import open_source, prepare

SPLIT = {"fractions": {"train": 0.5, "test": 0.5}}


def names(out, **builder):
    """The pseudonym and the split of every image."""
    found = [(s, r) for s in ("train", "test") for r in open_source("pairs", out, s, builder={**SPLIT, **builder})]
    return {record.id: (record.patient, split) for split, record in found}


def everything(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file())


def test_names_depend_on_the_directorys_key_and_splits_do_not(tmp_path):
    raw = tmp_path / "raw"
    pairs_folder(raw, 12)
    for out in ("one", "two"):
        prepare("pairs", tmp_path / out, raw=raw, builder=SPLIT)
    one, two = names(tmp_path / "one"), names(tmp_path / "two")
    assert all(one[image][0] != two[image][0] and one[image][1] == two[image][1] for image in one)
    assert len({name for name, _ in one.values()}) == 6 and all(len(name) == 12 for name, _ in one.values())
    unkeyed = {
        hashlib.sha256(f"{salt}{k}".encode()).hexdigest()[:12] for salt in ("", "p", "0:patient:p") for k in range(9)
    }
    assert not unkeyed & {name for name, _ in one.values()}
    key = tmp_path / "one" / KEY_FILE
    assert key.stat().st_mode & 0o077 == 0, "only its owner may read the key"
    before = key.read_text()
    prepare("pairs", tmp_path / "one", raw=raw, builder={**SPLIT, "seed": 3})
    assert key.read_text() == before, "the key is made once"
    assert {image: name for image, (name, _) in names(tmp_path / "one", seed=3).items()} == {
        image: name for image, (name, _) in one.items()
    }


def test_no_record_report_or_inputs_hold_a_key(tmp_path):
    pairs_folder(tmp_path / "raw", 6)
    given = tmp_path / "key.txt"
    given.write_text("0123456789abcdef-given\n")
    own = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder=SPLIT)
    with_key = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={**SPLIT, "pseudonym_key": str(given)})
    assert own.built and with_key.built and own.folder != with_key.folder
    made = (tmp_path / "out" / KEY_FILE).read_bytes().strip()
    for folder in (own.folder, with_key.folder):
        assert made not in everything(folder) and b"0123456789abcdef-given" not in everything(folder)
    found = names(tmp_path / "out", pseudonym_key=str(given))
    assert found["000.png"][0] == pseudonym("p0", b"0123456789abcdef-given")
    os.rename(given, tmp_path / "moved.txt")
    again = prepare(
        "pairs", tmp_path / "out", raw=tmp_path / "raw", builder={**SPLIT, "pseudonym_key": str(tmp_path / "moved.txt")}
    )
    assert not again.built, "another place of the same key changes nothing"


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("short", "has 5 bytes")])
def test_an_unusable_key_is_refused_without_showing_it(tmp_path, content, message):
    pairs_folder(tmp_path / "raw", 2)
    if content:
        (tmp_path / "key").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={"pseudonym_key": str(tmp_path / "key")})
    assert "short" not in str(error.value) and not list((tmp_path / "out").glob("*"))
