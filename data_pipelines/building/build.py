"""One build: a builder and raw files -> a folder of records, which an interruption leaves ready to go on."""

import contextlib
import errno
import fcntl
import importlib
import inspect
import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from afloc_jax.errors import UsageError, UserError, is_no_space
from data_pipelines.building.beam import pipeline_options

REPORT = "build_report.json"
_SHARDS = "shards"  # of a build in progress: what an interrupted one leaves and the next takes over
_HOW = {"raw", "workers", "journal", "beam"}  # builder arguments that are given otherwise: they do not name records


def check_call(name: str, builder_class: type, raw: str | Path, arguments: Mapping[str, Any]) -> None:
    known = arguments_of(builder_class) - _HOW
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"{name} has no argument {argument!r}; it has {', '.join(sorted(known))}")
    if needs_raw(name) and not Path(raw or "-").is_dir():
        raise UserError(f"no folder {str(raw)!r} with the raw files of {name}; give it as data.raw or --raw")


def missing_list(directory: Path, name: str) -> Path:
    """Where the names of all files go that a raw folder lacks."""
    return directory / f"{name}.missing.txt"


def clear(building: Path) -> None:
    """Removes all but the finished shards of a build."""
    for path in building.glob("*"):
        if path.name != _SHARDS:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    for path in building.glob(f"{_SHARDS}/*.writing"):
        path.unlink()
    for path in (building / _SHARDS, building):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def build(
    builder_class: type, raw: str | Path, folder: Path, arguments: dict[str, Any], workers: int, beam: str | None
) -> None:
    accepted = arguments_of(builder_class)
    extra: dict[str, Any] = {"raw": raw} if "raw" in accepted else {}
    if workers and "workers" in accepted:
        extra["workers"] = workers
    if "journal" in accepted:
        extra["journal"] = folder / _SHARDS
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    if beam is not None:
        if "beam" not in accepted:
            raise UsageError("this data set is drawn, not read: it cannot be built with Beam; leave --beam out")
        extra["beam"], config.beam_options = True, pipeline_options(beam)
    with _quiet():
        try:
            builder = builder_class(data_dir=folder, **{**arguments, **extra})
            builder.download_and_prepare(file_format="array_record", download_config=config)
        except Exception as error:
            cause = _user_error(error)
            if cause is not None:
                raise cause from None
            if is_no_space(error):  # ArrayRecord says so in an error of its own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            if isinstance(error, OSError):
                raise
            # TFDS puts the whole example, report text included, into its own errors: pass on the kind alone.
            what = f"{Path(folder).name.split('-')[0].lstrip('.')} with {arguments}"
            raise UserError(f"building {what} failed ({type(error).__name__})") from None
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    report = getattr(builder, "report", None)
    report = report.as_dict() if report is not None else {"records": counts}
    if not any(counts.values()):
        raise UserError(f"building {builder.name} gave no record")
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_builder(name: str) -> Any:
    root = Path(__file__).parents[1] / "builders"
    known = sorted(path.parent.name for path in root.glob("*/*_dataset_builder.py"))
    if name not in known:
        raise UsageError(f"unknown data set {name!r}; there are {', '.join(known)}")
    return importlib.import_module(f"data_pipelines.builders.{name}.{name}_dataset_builder").Builder


def arguments_of(builder_class: Any) -> set[str]:
    """Names of the keyword arguments that a builder and its own base classes take."""
    names: set[str] = set()
    for cls in builder_class.__mro__:
        if cls.__module__.startswith("data_pipelines.") and "__init__" in vars(cls):
            names |= set(inspect.signature(cls.__init__).parameters)
    return names - {"self", "kwargs"}


def needs_raw(name: str) -> bool:
    return "raw" in arguments_of(find_builder(name))


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError in a chain of causes, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Exclusive between processes; the system lets go of it when a process dies."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker of the build is importing a script that builds when it is imported: it would wait for its parent,
        # which waits for it. Failing here ends the worker, and the parent goes on without any.
        raise RuntimeError('build records under `if __name__ == "__main__":`, or the build runs on one core')
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the file stays: removing it would let a waiting and a new process both believe they hold it


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress bars for terminals, and its chatter on standard output for nobody."""
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
