"""One path type, remote storage refused in a line, and files that appear whole."""

import hashlib
import pathlib

import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, matching, read_json, replacing_folder, sha256_of, user_path, write_whole


@pytest.mark.parametrize("given", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket", "https://host/x", "hdfs://a/b"])
def test_remote_storage_is_refused_with_the_name_of_the_setting(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"^--workdir = {given}: remote storage is not supported yet; give a folder"):
        user_path(given, "--workdir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["runs/demo", "/tmp/a b", "c:d", "./gs:/x", pathlib.Path("runs")])
def test_local_paths_pass_as_they_are(given):
    assert user_path(given, "--out") == Path(given)


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(user_path("~/runs", "--workdir")) == "/home/someone/runs"


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_whole(str(path), "née".encode())
    assert path.read_bytes() == "née".encode() and oct(path.stat().st_mode & 0o777) == "0o644"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"cannot be read \(No such file or directory\); fetch it again"),
        (b'{"a": 1,\n "b": secret}', "not valid JSON at line 2; fetch it again"),
        (b"\xff\xfe", "not valid JSON; fetch it again"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_named_and_not_quoted(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}$") as caught:
        read_json(path, "fetch it again")
    assert "secret" not in str(caught.value)
    path.write_text('{"\u00e9": [1]}', encoding="utf-8")
    assert read_json(str(path)) == {"é": [1]}


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"content" * 10000)
    assert sha256_of(path) == hashlib.sha256(b"content" * 10000).hexdigest()


def test_files_are_matched_in_folders_whose_names_look_like_patterns(tmp_path):
    folder = tmp_path / "a [1]*"
    (folder / "b").mkdir(parents=True)
    for name in ("b/2.json", "b/1.json", "b/1.txt"):
        (folder / name).write_text("")
    assert matching(folder, "*/*.json") == [folder / "b" / "1.json", folder / "b" / "2.json"]
    assert matching(tmp_path / "absent", "*") == []


def test_a_folder_is_replaced_whole_whatever_its_name_and_what_a_killed_run_left_goes(tmp_path):
    folder = tmp_path / "a[1]" / "m[2]"
    folder.mkdir(parents=True)
    (folder / "old").write_text("")
    (folder.parent / ".m[2].writing-killed").mkdir()
    with pytest.raises(ValueError), replacing_folder(Path(folder), marker="new") as temporary:
        (temporary / "new").write_text("")
        raise ValueError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with replacing_folder(Path(folder), marker="new") as temporary:
        (temporary / "new").write_text("")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["m[2]"]
