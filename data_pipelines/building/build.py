"""One build: a folder of records from a builder and raw files. An interrupted build can be continued."""

import contextlib
import errno
import fcntl
import functools
import importlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as PackagePath

import tensorflow_datasets as tfds

from afloc_jax.errors import UsageError, UserError, chain, is_no_space
from afloc_jax.files import AnyPath, Path, matching, user_path, write_whole
from afloc_jax.ownership import Ownership
from afloc_jax.settings import Json, plain
from data_pipelines.building.account import REPORT, Account, BuildReport
from data_pipelines.building.arguments import arguments_of
from data_pipelines.building.beam import pipeline_options
from data_pipelines.building.pseudonyms import fingerprint, key_of_directory, read_key
from data_pipelines.settings import records_path

Arguments = Mapping[str, Json]  # keyword arguments of a builder

_BUILDERS = PackagePath(__file__).parents[1] / "builders"
OWNER = ".building.json"  # in a directory of records: who builds there
_LOCK = ".prepare.lock"  # an empty file that stays in the directory
_SHARDS = "shards"  # folder of finished shards, which the next build takes over from an interrupted one
_NOT_CONTENT = {"workers", "max_bad_fraction"}  # arguments that change no record
_HOW = {"raw", "workers", "journal", "beam"}  # arguments that this module sets: users cannot pass them as `builder`


@dataclass(frozen=True)
class Call:
    """A data set and the arguments of its builder, checked as far as possible without reading files."""

    dataset: str
    directory: Path
    raw: str
    arguments: dict[str, Json]
    builder_class: type[tfds.core.DatasetBuilder]

    @classmethod
    def of(
        cls,
        dataset: str,
        directory: AnyPath,
        raw: AnyPath,
        builder: Arguments | None,
        cache: AnyPath | None = None,
        reading: Arguments | None = None,
    ) -> "Call":
        """The call for the arguments of `prepared.open_source`. Without `cache`, a bucket is refused.

        Raises UsageError for an unknown data set or remote storage.
        """
        name = "directory of records"
        user_path(cache or "", "--cache")
        folder = user_path(directory, name) if cache is None else records_path(directory, cache, name, "--cache")
        files = str(user_path(raw, "raw folder")) if raw else ""
        arguments = json.loads(json.dumps(plain(builder or {}), sort_keys=True, default=str))
        known = sorted(path.parent.name for path in _BUILDERS.glob("*/*_dataset_builder.py"))
        if dataset not in known:
            raise UsageError(f"unknown data set {dataset!r}; there are {', '.join(known)}")
        module = importlib.import_module(f"..builders.{dataset}.{dataset}_dataset_builder", __package__)
        # Drawn images are grey, and a data set without reports has none to clean.
        unread = {"grey", "compatible"} - set(arguments_of(module.Builder))
        arguments = {name: value for name, value in (reading or {}).items() if name not in unread} | arguments
        return cls(dataset, folder, files, arguments, module.Builder)

    @property
    def needs_raw(self) -> bool:
        """Whether records are read from raw files. Phantoms are drawn."""
        return "raw" in arguments_of(self.builder_class)

    @property
    def inputs(self) -> dict[str, Json]:
        """All inputs of a build except the raw files: the content of inputs.json."""
        return {"builder": self.dataset, "version": str(self.builder_class.VERSION), "arguments": self.arguments}

    @property
    def content(self) -> dict[str, Json]:
        """The inputs without the arguments that change no record."""
        kept = {name: value for name, value in self.arguments.items() if name not in _NOT_CONTENT}
        if kept.get("pseudonym_key"):  # which file holds it does not matter
            kept["pseudonym_key"] = fingerprint(read_key(str(kept["pseudonym_key"])))
        if kept.get("compatible"):  # until 27 November 2026 such reports were cleaned with their impression first
            kept["compatible"] = "findings first"
        return {**self.inputs, "arguments": kept}

    def check(self) -> None:
        """Raises UsageError for an argument that the builder does not have, UserError for a missing raw folder."""
        known = set(arguments_of(self.builder_class)) - _HOW
        for argument in self.arguments:
            if argument not in known:
                raise UsageError(f"{self.dataset} has no argument {argument!r}; it has {', '.join(sorted(known))}")
        if self.needs_raw and not Path(self.raw or "-").is_dir():
            raise UserError(
                f"no folder {self.raw!r} with the raw files of {self.dataset}; give it as data.raw or --raw"
            )


def build(call: Call, folder: Path, workers: int, beam: str | None) -> None:
    """Builds records and their report in `folder`. Finished shards of an earlier build are taken over.

    Args:
        call: the data set and its arguments.
        folder: the folder to write.
        workers: threads or processes; 0 leaves it to the builder.
        beam: options of Apache Beam; None: without Beam.

    Raises:
        UserError: the raw files cannot be used; the message contains no report text.
        OSError: the disk is full, or another error of the file system.
    """
    accepted = arguments_of(call.builder_class)
    how = {"raw": call.raw, "workers": workers or None, "journal": folder / _SHARDS}
    if "pseudonym_key" in accepted and not call.arguments.get("pseudonym_key"):
        how["pseudonym_key"] = key_of_directory(call.directory)
    extra = {name: value for name, value in how.items() if name in accepted and value is not None}
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    if beam is not None:
        if "beam" not in accepted:
            raise UsageError("this data set is drawn, not read: it cannot be built with Beam; leave --beam out")
        extra["beam"], config.beam_options = True, pipeline_options(beam)
    with _quiet():
        try:
            builder = call.builder_class(data_dir=folder, **{**call.arguments, **extra})
            builder.download_and_prepare(file_format="array_record", download_config=config)
        except Exception as error:
            cause = next((link for link in chain(error) if isinstance(link, UserError)), None)
            if cause is not None:
                raise cause from None
            if is_no_space(error):  # ArrayRecord raises an error of its own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            if isinstance(error, OSError):
                raise
            # TFDS quotes the example, with its report text, in its errors: only their type is passed on.
            what = f"{call.dataset} with {call.arguments}"
            raise UserError(f"building {what} failed ({type(error).__name__})") from None
    (folder / "downloads").rmtree(missing_ok=True)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    if not any(counts.values()):
        raise UserError(f"building {call.dataset} gave no record")
    account = getattr(builder, "account", None)
    report = account.report() if isinstance(account, Account) else BuildReport(None, counts)
    write_whole(folder / REPORT, json.dumps(report.plain(), indent=2, ensure_ascii=False) + "\n")


def clear(building: Path) -> None:
    """Removes all but the finished shards of a build."""
    for path in list(building.iterdir()) if building.is_dir() else ():
        if path.name != _SHARDS:
            path.rmtree()
    for path in matching(building, f"{_SHARDS}/*.writing"):
        path.unlink()
    for path in (building / _SHARDS, building):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


@contextlib.contextmanager
def alone(directory: Path, waits: bool) -> Iterator[Ownership]:
    """The right to build records in a directory, which one process has at a time.

    Where another one has it, this one `waits` and says for whom, or raises UsageError, which names it.

    The file `OWNER` keeps processes of all hosts out, a lock of the system those of this one: also where the file
    system has no hard links, without which the first cannot be.
    """
    _refuse_workers()
    with Ownership(directory, functools.partial(print, file=sys.stderr), name=OWNER, waits=waits) as owner:
        owner.take()
        with lock(directory / _LOCK):
            yield owner


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """A lock between processes of this host, which the system releases when a process dies."""
    _refuse_workers()
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the file stays: if it were removed, a waiting and a new process could both get the lock


def _refuse_workers() -> None:
    """Raises RuntimeError in a worker that imports a script which builds at its import.

    It would wait for its parent, which waits for it. Its end lets the parent continue without workers.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError('build records under `if __name__ == "__main__":`, or the build runs on one core')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides TFDS's progress bars outside terminals, and all that TFDS prints on standard output."""
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
