"""Folders of prepared records: built where they are missing, opened where they exist (see `reading`).

The name of a folder is `<data set>-<options>-<raw files>`, where the last two are short hashes. Other builder
arguments, or other contents of raw files (in the raw folder, behind its links, or in a folder that an argument names),
therefore give another folder and never outdated records. A folder gets its final name only when it is complete, so that
a rerun never finds an incomplete one.
"""

import hashlib
import json
import os
import pathlib
import sys
from dataclasses import dataclass
from typing import Any

from afloc_jax.buckets import check as check_bucket
from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, matching, read_json, user_path, write_whole
from afloc_jax.ownership import Ownership
from afloc_jax.settings import Json
from data_pipelines.building.account import BuildReport, TooManyRejectedError
from data_pipelines.building.build import Arguments, Call, alone, build, clear
from data_pipelines.building.exclusion import exclusion_lists
from data_pipelines.building.expected_files import IncompleteDataError
from data_pipelines.building.raw_files import Memory, RawFiles
from data_pipelines.cache import copied
from data_pipelines.reading import RecordSource

_INPUTS = "inputs.json"
_HASH_LENGTH = 10


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared records, whether this call built it, and the report of its build."""

    folder: Path
    built: bool
    report: BuildReport

    def sources(self) -> dict[str, RecordSource]:
        """The records of each split that is not empty."""
        return {split: RecordSource(self.folder, split) for split, count in self.report.records.items() if count}


def open_source(
    dataset: str,
    directory: str | os.PathLike[str],
    split: str,
    *,
    raw: str | os.PathLike[str] = "",
    builder: Arguments | None = None,
    cache: str | os.PathLike[str] = "",
    reading: Arguments | None = None,
) -> RecordSource:
    """The records of one split of a data set, which is prepared first if needed and possible.

    Args:
        dataset: the name of a builder in data_pipelines/builders (`phantom`, `pairs`, `masks`, ...).
        directory: the folder of prepared records; in a bucket they are prepared already.
        split: `train`, `validation` or `test`.
        raw: the folder of raw files; empty if the records are prepared already (`phantom` needs none).
        builder: keyword arguments of the builder, which also select among prepared folders.
        cache: the folder of this machine to which records in a bucket are copied.
        reading: further arguments of the builder, which say how files are read. Those that a builder without files or
            reports does not have are left out.

    Raises UserError if there are neither prepared records nor raw files, or no such split.
    """
    call = Call.of(dataset, directory, raw, builder, cache, reading)
    if is_bucket(call.directory):
        return RecordSource(copied(_find(call), cache), split)
    folder = _prepared(call)[0] if call.raw or not call.needs_raw else _find(call)
    return RecordSource(folder, split)


def check_source(
    dataset: str,
    directory: str | os.PathLike[str],
    *,
    raw: str | os.PathLike[str] = "",
    builder: Arguments | None = None,
    cache: str | os.PathLike[str] = "",
    reading: Arguments | None = None,
) -> None:
    """Raises the errors of `open_source` for a wrong name, a wrong argument or missing records. Builds nothing."""
    call = Call.of(dataset, directory, raw, builder, cache, reading)
    if not is_bucket(call.directory) and (call.raw or not call.needs_raw):
        call.check()
    else:
        _find(call)


def prepare(
    dataset: str,
    directory: str | os.PathLike[str],
    *,
    raw: str | os.PathLike[str] = "",
    builder: Arguments | None = None,
    workers: int = 0,
    beam: str | None = None,
    waits: bool = True,
) -> Prepared:
    """Builds the records of a data set unless they exist already. See `open_source` for the arguments.

    An interrupted build continues from its finished shards. `beam` are pipeline options ("--runner=DirectRunner") with
    which Apache Beam builds the records; None builds them without Beam. If another process builds records in the
    directory, this one waits for its end; without `waits` it raises UsageError.
    """
    folder, built = _prepared(Call.of(dataset, directory, raw, builder), workers, beam, waits)
    return Prepared(folder, built, BuildReport.read(folder))


def open_prepared(dataset: str, directory: str | os.PathLike[str], builder: Arguments | None = None) -> Prepared:
    """A data set that is prepared already. Raises UserError as `open_source` does."""
    folder = _find(Call.of(dataset, directory, "", builder))
    return Prepared(folder, False, BuildReport.read(folder))


def _prepared(call: Call, workers: int = 0, beam: str | None = None, waits: bool = True) -> tuple[Path, bool]:
    """The complete folder for these inputs, and whether this call built it."""
    directory = call.directory
    call.check()
    files = _files(call)
    stem = f"{call.dataset}-{_hash(call.content)}"
    identity = Memory(directory).identity(files) if call.needs_raw else "generated"
    if identity and (folder := directory / f"{stem}-{_hash(identity)}").is_dir():
        return folder, False
    missing = directory / f"{call.dataset}.missing.txt"  # the list of all files that the raw folder lacks
    rejected = directory / f"{call.dataset}.rejected.txt"  # the unusable images of a build that stopped
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with alone(directory, waits) as owner:
            identity = Memory(directory).read(files, workers) if call.needs_raw else "generated"
            folder = directory / f"{stem}-{_hash(identity)}"
            if folder.is_dir():  # another process built it while this one waited
                return folder, False
            if others := matching(directory, f"{stem}-*"):
                print(f"the raw files are others than those of {others[-1].name}: building records", file=sys.stderr)
            building = directory / f".{folder.name}.building"
            clear(building)  # left by a killed build, as this process is the owner
            try:
                _build_whole(call, building, folder, files, owner, workers, beam)
            except TooManyRejectedError as error:
                write_whole(rejected, "".join(f"{entry.image}: {entry.reason}\n" for entry in error.rejected))
                raise UserError(f"{error} (which files, a line each: {rejected})") from None
            except IncompleteDataError as error:
                write_whole(missing, "".join(f"{line}\n" for line in error.lacking))
                raise UserError(f"{error} (all of it, a line each: {missing})") from None
            for stale in (missing, rejected):
                stale.unlink(missing_ok=True)
            for old in matching(directory, f".{stem}-*.building"):  # shards of raw files that have changed since
                old.rmtree(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write records to {directory}: {error.strerror or error}") from error
    return folder, True


def _build_whole(
    call: Call, building: Path, folder: Path, files: RawFiles, owner: Ownership, workers: int, beam: str | None
) -> None:
    """Builds records under a temporary name, and renames them if the raw files and the owner are still the same."""
    try:
        build(call, building, workers, beam)
        files.check_unchanged()
        write_whole(building / _INPUTS, json.dumps(call.inputs, indent=2, default=str) + "\n")
        owner.check()
        building.rename(folder)
    except BaseException:  # interrupted, disk full, too many bad images: finished shards are kept
        if owner.holds():
            clear(building)
        raise


def _find(call: Call) -> Path:
    """The prepared folder for a call. Without arguments any folder of the data set fits, preferably of this version,
    and with the default rule of grey values."""
    dataset, directory = call.dataset, call.directory
    if is_bucket(directory):
        check_bucket(os.fspath(directory))
        if call.raw:
            raise UsageError(f"{directory}: records in a bucket are prepared already; give no raw files")
    candidates = [path.parent for path in matching(directory, f"{dataset}-*-*/{_INPUTS}")]
    if not call.arguments:
        version = call.inputs["version"]
        inputs = {path: _inputs(path) for path in candidates}
        candidates = [path for path in candidates if inputs[path].get("version") == version] or candidates
        candidates = [path for path in candidates if "grey" not in inputs[path]["arguments"]] or candidates
    else:
        stem = f"{dataset}-{_hash(call.content)}-"
        candidates = [path for path in candidates if path.name.startswith(stem)]
    if not candidates:
        what = f"no prepared records of {dataset!r} with these builder arguments and of this version in {directory}"
        remote = is_bucket(directory)
        remedy = f"run: afloc prepare {dataset} --raw FOLDER --out {'DATA' if remote else directory}"
        remedy += "".join(f" --builder {name}={value}" for name, value in call.arguments.items())
        remedy += f" && gcloud storage cp --recursive DATA/* {directory}" if remote else ""
        raise UserError(f"{what}; {remedy}")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(
            f"{directory} holds several preparations of {dataset!r} ({names}); give the raw folder or the builder's "
            "arguments, or remove those you do not want"
        )
    return candidates[0]


def _inputs(folder: Path) -> dict[str, Any]:
    """The inputs of a prepared folder, see `Call.inputs`. Raises UserError for a damaged file."""
    remedy = "remove the folder and prepare again"
    content = read_json(folder / _INPUTS, remedy)
    if not isinstance(content, dict) or not isinstance(content.get("arguments"), dict):
        raise UserError(f"{folder / _INPUTS}: is not what a build writes; {remedy}")
    return content


def _hash(value: Json) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _files(call: Call) -> RawFiles:
    """The files that a build reads: those of the raw folder, and those that arguments name."""
    files = RawFiles()
    if not call.needs_raw:
        return files
    for name in call.builder_class.FOLDERS:
        if folder := call.arguments.get(name):
            path = user_path(str(folder), f"builder argument {name}")
            if not path.is_dir():
                raise UserError(f"no folder {str(folder)!r}, named by the builder argument {name}")
            files.add_below(name, pathlib.Path(path), call.directory)
    files.add("exclude", exclusion_lists(call.arguments.get("exclude")))
    files.add_below("", pathlib.Path(call.raw), call.directory)
    return files
