"""Prepared records: building them once and finding them again; reading them is in `reading`.

A prepared folder is named after everything that decided its content, `<name>-<options>-<raw files>`, two short hashes:
other builder arguments or changed raw files (in the raw folder, or in a folder that an argument names) give another
folder, never stale records. A folder gets its final name only
when it is complete, so a build that was killed leaves nothing that a rerun trips over.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afloc_jax.errors import UserError
from data_pipelines.building.build import REPORT, build, check_call, clear, find_builder, lock, missing_list, needs_raw
from data_pipelines.building.expected_files import IncompleteDataError
from data_pipelines.reading import RecordSource

_INPUTS = "inputs.json"
_LOCK = ".prepare.lock"  # stays in the directory, empty
_HASH_LENGTH = 10
# Builder arguments that change no record: how fast a build is, and when it gives up.
_NOT_CONTENT = ("workers", "max_bad_fraction")


def open_source(
    name: str,
    directory: str | Path,
    split: str,
    *,
    raw: str | Path = "",
    builder: Mapping[str, Any] | None = None,
    workers: int = 0,
) -> RecordSource:
    """Opens one split of a data set, preparing it first where that is possible and needed.

    Args:
        name: builder in data_pipelines/builders (`phantom`, `pairs`, `masks`).
        directory: where prepared records live.
        split: `train`, `validation` or `test`.
        raw: folder of raw files; empty: the records must have been prepared (phantom makes its own).
        builder: keyword arguments of the builder; they select among prepared folders.
        workers: threads or processes of the build; 0 leaves it to the builder.

    Raises UserError when nothing is prepared and there is nothing to prepare from, or the split does not exist.
    """
    arguments = _arguments(builder)
    find_builder(name)  # a wrong name is a wrong call, whatever lies in the directory
    if raw or not needs_raw(name):
        return RecordSource(_prepared(name, raw, Path(directory), arguments, workers)[0], split)
    return RecordSource(_find(name, Path(directory), arguments), split)


def check_source(
    name: str, directory: str | Path, *, raw: str | Path = "", builder: Mapping[str, Any] | None = None
) -> None:
    """Raises what `open_source` would of a wrong name or argument, or of absent files or records; builds nothing."""
    arguments, builder_class = _arguments(builder), find_builder(name)
    if raw or not needs_raw(name):
        check_call(name, builder_class, raw, arguments)
    else:
        _find(name, Path(directory), arguments)


def prepare(
    name: str,
    directory: str | Path,
    *,
    raw: str | Path = "",
    builder: Mapping[str, Any] | None = None,
    workers: int | None = 0,
    beam: str | None = None,
) -> dict[str, Any]:
    """Builds the records of a data set unless they exist already. Arguments as in `open_source`.

    A build that was interrupted goes on from its finished shards. `beam` builds with Apache Beam, by its
    pipeline options ("--runner=DirectRunner").

    Returns:
        The build report: "folder", "built" (False if they were there), "records" per split and whatever the builder
        counted ("rows", "patients", "dropped", "rejected"). The same is in `build_report.json` beside the records.
    """
    folder, built = _prepared(name, raw, Path(directory), _arguments(builder), workers or 0, beam)
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return {"folder": str(folder), "built": built, **report}


def open_prepared(
    name: str, directory: str | Path, builder: Mapping[str, Any] | None = None
) -> tuple[dict[str, RecordSource], dict[str, Any]]:
    """All splits of a prepared data set, and its build report. Raises UserError as `open_source` does."""
    return open_folder(_find(name, Path(directory), _arguments(builder)))


def open_folder(folder: Path) -> tuple[dict[str, RecordSource], dict[str, Any]]:
    """All splits of one prepared folder, and its build report."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return {split: RecordSource(folder, split) for split, count in report["records"].items() if count}, report


def _prepared(
    name: str, raw: str | Path, directory: Path, arguments: dict[str, Any], workers: int, beam: str | None = None
) -> tuple[Path, bool]:
    """The complete folder for these inputs and whether it was built just now."""
    builder_class = find_builder(name)
    check_call(name, builder_class, raw, arguments)
    inputs = {"builder": name, "version": str(builder_class.VERSION), "arguments": arguments}
    files = _files(builder_class, Path(raw), arguments) if needs_raw(name) else "generated"
    folder = directory / f"{name}-{_hash(inputs)}-{_hash(files)}"
    if folder.is_dir():
        return folder, False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with lock(directory / _LOCK):
            if folder.is_dir():  # another process built it while this one waited
                return folder, False
            building = directory / f".{folder.name}.building"
            clear(building)  # left by a build that was killed: we hold the lock
            try:
                build(builder_class, raw, building, arguments, workers, beam)
                (building / _INPUTS).write_text(json.dumps(inputs, indent=2, default=str) + "\n", encoding="utf-8")
                os.rename(building, folder)
                missing_list(directory, name).unlink(missing_ok=True)
                for old in directory.glob(f".{name}-{_hash(inputs)}-*.building"):  # shards of files as they were before
                    shutil.rmtree(old, ignore_errors=True)
            except IncompleteDataError as error:
                clear(building)
                path = missing_list(directory, name)
                path.write_text("".join(f"{line}\n" for line in error.lacking), encoding="utf-8")
                raise UserError(f"{error} (all of it, a line each: {path})") from None
            except BaseException:  # interrupted, a full disk, too many bad images: finished shards stay
                clear(building)
                raise
    except OSError as error:
        raise UserError(f"cannot write records to {directory}: {error.strerror or error}") from error
    return folder, True


def _find(name: str, directory: Path, arguments: dict[str, Any]) -> Path:
    """The one prepared folder that fits. Without arguments any of this name does, of this version if there is one."""
    candidates = sorted(path for path in directory.glob(f"{name}-*-*") if (path / _INPUTS).is_file())
    version = str(find_builder(name).VERSION)
    if not arguments:
        inputs = {path: json.loads((path / _INPUTS).read_text(encoding="utf-8")) for path in candidates}
        candidates = [path for path in candidates if inputs[path].get("version") == version] or candidates
    else:
        wanted = _hash({"builder": name, "version": version, "arguments": arguments})
        candidates = [path for path in candidates if path.name.startswith(f"{name}-{wanted}-")]
    if not candidates:
        what = f"no prepared records of {name!r} with these builder arguments and of this version in {directory}"
        raise UserError(f"{what}; run: afloc prepare {name} --raw FOLDER --out {directory}")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(
            f"{directory} holds several preparations of {name!r} ({names}); give the raw folder or the builder's "
            "arguments, or remove those you do not want"
        )
    return candidates[0]


def _arguments(builder: Mapping[str, Any] | None) -> dict[str, Any]:
    """Plain sorted builder arguments; ConfigDicts and tuples become what JSON can hold."""
    return _plain(builder or {})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value


def _hash(value: Any) -> str:
    if isinstance(value, dict) and "arguments" in value:
        kept = {key: item for key, item in value["arguments"].items() if key not in _NOT_CONTENT}
        value = {**value, "arguments": kept}
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _files(builder_class: Any, raw: Path, arguments: Mapping[str, Any]) -> Any:
    """What a build reads: the files of the raw folder, and of folders apart from it that builder arguments name."""
    apart = {}
    for name in builder_class.FOLDERS:
        if folder := arguments.get(name):
            if not Path(folder).is_dir():
                raise UserError(f"no folder {str(folder)!r}, given as builder argument {name}")
            apart[name] = _fingerprint(Path(folder))
    return [_fingerprint(raw), apart] if apart else _fingerprint(raw)


def _fingerprint(raw: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file below the raw folder: cheap, and enough to notice an edit."""
    files = (path for path in raw.rglob("*") if path.is_file())
    return sorted((path.relative_to(raw).as_posix(), (s := path.stat()).st_size, s.st_mtime_ns) for path in files)
