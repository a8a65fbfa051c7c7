"""One build: a builder and raw files -> a folder of records, which an interruption leaves ready to go on."""

import contextlib
import errno
import fcntl
import importlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path as PackagePath

import tensorflow_datasets as tfds

from afloc_jax.errors import UsageError, UserError, chain, is_no_space
from afloc_jax.files import Path, matching, write_whole
from afloc_jax.settings import Json
from data_pipelines.building.account import REPORT, Account, BuildReport
from data_pipelines.building.arguments import arguments_of
from data_pipelines.building.beam import pipeline_options

Arguments = Mapping[str, Json]  # keyword arguments of a builder
Builder = type[tfds.core.GeneratorBasedBuilder]

_SHARDS = "shards"  # folder of finished shards, which an interrupted build leaves and the next takes over
_HOW = {"raw", "workers", "journal", "beam"}  # how a build works, which `builder` arguments do not say


def find_builder(dataset: str) -> Builder:
    """The builder of a data set. Raises UsageError for a name that there is not."""
    root = PackagePath(__file__).parents[1] / "builders"
    known = sorted(path.parent.name for path in root.glob("*/*_dataset_builder.py"))
    if dataset not in known:
        raise UsageError(f"unknown data set {dataset!r}; there are {', '.join(known)}")
    return importlib.import_module(f"data_pipelines.builders.{dataset}.{dataset}_dataset_builder").Builder


def needs_raw(builder: Builder) -> bool:
    """Whether records come from raw files; phantoms are drawn."""
    return "raw" in arguments_of(builder)


def check_call(dataset: str, builder: Builder, raw: str, arguments: Arguments) -> None:
    """Raises UsageError for an argument that the builder does not have, UserError where its raw folder is not."""
    known = set(arguments_of(builder)) - _HOW
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"{dataset} has no argument {argument!r}; it has {', '.join(sorted(known))}")
    if needs_raw(builder) and not Path(raw or "-").is_dir():
        raise UserError(f"no folder {raw!r} with the raw files of {dataset}; give it as data.raw or --raw")


def build(builder: Builder, raw: str, folder: Path, arguments: Arguments, workers: int, beam: str | None) -> None:
    """Builds records and their report into `folder`. What an earlier build finished there is taken over.

    Args:
        builder: from `find_builder`.
        raw: folder of raw files; unused where records are drawn.
        folder: where the records go.
        arguments: keyword arguments of the builder.
        workers: threads or processes; 0 leaves it to the builder.
        beam: options of Apache Beam; None: without Beam.

    Raises:
        UserError: raw files that cannot be used; the message shows no report text.
        OSError: a full disk and the like.
    """
    accepted = arguments_of(builder)
    how = {"raw": raw, "workers": workers or None, "journal": folder / _SHARDS}
    extra = {name: value for name, value in how.items() if name in accepted and value is not None}
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    if beam is not None:
        if "beam" not in accepted:
            raise UsageError("this data set is drawn, not read: it cannot be built with Beam; leave --beam out")
        extra["beam"], config.beam_options = True, pipeline_options(beam)
    with _quiet():
        try:
            made = builder(data_dir=folder, **{**arguments, **extra})
            made.download_and_prepare(file_format="array_record", download_config=config)
        except Exception as error:
            cause = next((link for link in chain(error) if isinstance(link, UserError)), None)
            if cause is not None:
                raise cause from None
            if is_no_space(error):  # ArrayRecord says so in an error of its own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            if isinstance(error, OSError):
                raise
            # TFDS puts the example, report text included, into its own errors: only the kind is passed on.
            what = f"{folder.name.split('-')[0].lstrip('.')} with {arguments}"
            raise UserError(f"building {what} failed ({type(error).__name__})") from None
    (folder / "downloads").rmtree(missing_ok=True)
    counts = {split: info.num_examples for split, info in made.info.splits.items()}
    if not any(counts.values()):
        raise UserError(f"building {made.name} gave no record")
    account = getattr(made, "account", None)
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
def lock(path: Path) -> Iterator[None]:
    """A lock between processes. The system lets go of it when a process dies."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker of the build is importing a script that builds when it is imported: it would wait for its parent,
        # which waits for it. Failing here ends the worker, and the parent goes on without any.
        raise RuntimeError('build records under `if __name__ == "__main__":`, or the build runs on one core')
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the file stays: removing it would let a waiting and a new process both believe they hold it


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress bars for terminals, and what TFDS prints on standard output from everyone."""
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
