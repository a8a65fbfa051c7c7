"""Prepared records: built where they are missing, opened where they exist. `reading` reads them.

A prepared folder is named after everything that decided its content, `<data set>-<options>-<raw files>`, two short
hashes: other builder arguments or changed raw files (in the raw folder, or in a folder that an argument names) give
another folder, never stale records. A folder gets its final name only when it is complete, so a build that was killed
leaves nothing that a rerun trips over.
"""

import hashlib
import json
import os
import pathlib
from dataclasses import dataclass

from afloc_jax.errors import UserError
from afloc_jax.files import Path, matching, read_json, user_path, write_whole
from afloc_jax.settings import Json
from data_pipelines.building.account import BuildReport
from data_pipelines.building.build import Arguments, Call, build, clear, lock
from data_pipelines.building.expected_files import IncompleteDataError
from data_pipelines.reading import RecordSource

_INPUTS = "inputs.json"
_LOCK = ".prepare.lock"  # stays in the directory, empty
_HASH_LENGTH = 10

Fingerprint = list[tuple[str, int, int]]
"""Relative path, size and time of change (nanoseconds) of files."""
Files = Fingerprint | tuple[Fingerprint, dict[str, Fingerprint]]
"""Files of the raw folder, and of folders apart from it by the builder argument that names them."""


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared records: whether it was built just now, and what its build counted."""

    folder: Path
    built: bool
    report: BuildReport

    def sources(self) -> dict[str, RecordSource]:
        """The records of every split that has some."""
        return {split: RecordSource(self.folder, split) for split, count in self.report.records.items() if count}


def open_source(
    dataset: str,
    directory: str | os.PathLike[str],
    split: str,
    *,
    raw: str | os.PathLike[str] = "",
    builder: Arguments | None = None,
) -> RecordSource:
    """One split of a data set, prepared first where that is possible and needed.

    Args:
        dataset: names the builder in data_pipelines/builders (`phantom`, `pairs`, `masks`, ...).
        directory: folder of prepared records.
        split: `train`, `validation` or `test`.
        raw: folder of raw files; empty: the records must have been prepared (phantom makes its own).
        builder: keyword arguments of the builder; they select among prepared folders.

    Raises UserError when nothing is prepared and there is nothing to prepare from, or the split does not exist.
    """
    call = Call.of(dataset, directory, raw, builder)
    folder = _prepared(call)[0] if call.raw or not call.needs_raw else _find(call)
    return RecordSource(folder, split)


def check_source(
    dataset: str,
    directory: str | os.PathLike[str],
    *,
    raw: str | os.PathLike[str] = "",
    builder: Arguments | None = None,
) -> None:
    """Raises what `open_source` raises for a wrong name or argument or for missing records; builds nothing."""
    call = Call.of(dataset, directory, raw, builder)
    if call.raw or not call.needs_raw:
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
) -> Prepared:
    """Builds the records of a data set unless they exist already. Arguments as in `open_source`.

    A build that was interrupted goes on from its finished shards. `beam` builds with Apache Beam, by its
    pipeline options ("--runner=DirectRunner").
    """
    folder, built = _prepared(Call.of(dataset, directory, raw, builder), workers, beam)
    return Prepared(folder, built, BuildReport.read(folder))


def open_prepared(dataset: str, directory: str | os.PathLike[str], builder: Arguments | None = None) -> Prepared:
    """A data set that has been prepared. Raises UserError as `open_source` does."""
    folder = _find(Call.of(dataset, directory, "", builder))
    return Prepared(folder, False, BuildReport.read(folder))


def _prepared(call: Call, workers: int = 0, beam: str | None = None) -> tuple[Path, bool]:
    """The complete folder for these inputs and whether it was built just now."""
    directory = call.directory
    call.check()
    files: Files | str = _files(call) if call.needs_raw else "generated"
    stem = f"{call.dataset}-{_hash(call.content)}"
    folder = directory / f"{stem}-{_hash(files)}"
    if folder.is_dir():
        return folder, False
    missing = directory / f"{call.dataset}.missing.txt"  # names all files that the raw folder lacks
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with lock(directory / _LOCK):
            if folder.is_dir():  # another process built it while this one waited
                return folder, False
            building = directory / f".{folder.name}.building"
            clear(building)  # left by a build that was killed: we hold the lock
            try:
                build(call, building, workers, beam)
                write_whole(building / _INPUTS, json.dumps(call.inputs, indent=2, default=str) + "\n")
                building.rename(folder)
                missing.unlink(missing_ok=True)
                for old in matching(directory, f".{stem}-*.building"):  # shards of files as they were before
                    old.rmtree(missing_ok=True)
            except IncompleteDataError as error:
                clear(building)
                write_whole(missing, "".join(f"{line}\n" for line in error.lacking))
                raise UserError(f"{error} (all of it, a line each: {missing})") from None
            except BaseException:  # interrupted, a full disk, too many bad images: finished shards stay
                clear(building)
                raise
    except OSError as error:
        raise UserError(f"cannot write records to {directory}: {error.strerror or error}") from error
    return folder, True


def _find(call: Call) -> Path:
    """The one prepared folder that fits. Without arguments all of this name fit, this version's first."""
    dataset, directory = call.dataset, call.directory
    candidates = [path.parent for path in matching(directory, f"{dataset}-*-*/{_INPUTS}")]
    if not call.arguments:
        version = call.inputs["version"]
        candidates = [path for path in candidates if read_json(path / _INPUTS).get("version") == version] or candidates
    else:
        stem = f"{dataset}-{_hash(call.content)}-"
        candidates = [path for path in candidates if path.name.startswith(stem)]
    if not candidates:
        what = f"no prepared records of {dataset!r} with these builder arguments and of this version in {directory}"
        raise UserError(f"{what}; run: afloc prepare {dataset} --raw FOLDER --out {directory}")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(
            f"{directory} holds several preparations of {dataset!r} ({names}); give the raw folder or the builder's "
            "arguments, or remove those you do not want"
        )
    return candidates[0]


def _hash(value: "Json | Files") -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _files(call: Call) -> Files:
    """The files that a build reads."""
    apart = {}
    for name in call.builder_class.FOLDERS:
        if folder := call.arguments.get(name):
            path = user_path(str(folder), f"builder argument {name}")
            if not path.is_dir():
                raise UserError(f"no folder {str(folder)!r}, named by the builder argument {name}")
            apart[name] = _fingerprint(path)
    own = _fingerprint(call.raw)
    return (own, apart) if apart else own


def _fingerprint(folder: str | os.PathLike[str]) -> Fingerprint:
    """Every file below a folder of raw files: cheap, and enough to notice an edit."""
    root = pathlib.Path(folder)  # local, and with hidden files and nanoseconds, which `files.Path` does not give
    paths = (path for path in root.rglob("*") if path.is_file())
    return sorted((path.relative_to(root).as_posix(), (s := path.stat()).st_size, s.st_mtime_ns) for path in paths)
