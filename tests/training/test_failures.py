"""How failures are put into one line, and what a signal does where nothing or something must be saved."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from afloc_jax.errors import UsageError, is_no_space
from afloc_jax.training import failures
from afloc_jax.training.failures import Interrupted, StopSignal, explain, hide_tracebacks


def wrapped(cause):
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("a library's own words\nover two lines") from error
    except RuntimeError as error:
        return error


def test_a_full_disk_is_recognised_behind_a_librarys_error():
    assert is_no_space(OSError(errno.ENOSPC, "No space left on device"))
    assert is_no_space(wrapped(OSError(errno.ENOSPC, "x")))
    assert is_no_space(ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device [errno 28]"))
    assert not is_no_space(wrapped(OSError(errno.ENOENT, "x")))
    assert explain(wrapped(OSError(errno.ENOSPC, "x"))).startswith("no space left on the disk of --workdir")


def test_other_failures_keep_their_first_line_and_users_errors_all_of_it():
    assert explain(wrapped(KeyError("k"))) == "RuntimeError: a library's own words (--debug shows where)"
    assert explain(UsageError("two\n  lines")) == "two lines"
    written = explain(ValueError("Error writing gs://b/d: forbidden [tensorstore_spec='{}']"))
    assert written == "ValueError: Error writing gs://b/d: forbidden (--debug shows where)"
    assert "batch_size" in explain(MemoryError())
    broken = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error: Connection reset by peer"
    assert explain(wrapped(ValueError(broken))).startswith("another process of this run is gone")
    assert explain(ValueError("UNKNOWN: all-reduce failed")).startswith("ValueError: UNKNOWN")


def test_what_libraries_log_with_a_traceback_is_hidden_and_their_other_lines_are_not(caplog):
    hide_tracebacks()
    try:
        for name in ("absl", "asyncio"):
            logger = logging.getLogger(name)
            try:
                raise OSError(errno.ENOSPC, "x")
            except OSError:
                logger.exception("hidden")
            logger.error("shown")
    finally:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).removeFilter(failures._has_no_traceback)
    assert caplog.messages == ["shown", "shown"]


# The main thread is in C for minutes, as in a compilation. PBKDF2 lets other threads run, and no signal interrupts it.
IN_C = """
import hashlib, os, signal
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.leaving import released_when_leaving
with StopSignal(holding=False), released_when_leaving(lambda: print("released", flush=True)):
    print("in C", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_signal_ends_a_process_that_is_deep_in_c_and_has_nothing_to_save():
    process = subprocess.Popen([sys.executable, "-c", IN_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in C\n"
        time.sleep(0.5)  # until it is
        began = time.monotonic()
        process.terminate()
        out, error = process.communicate(timeout=60)
        assert time.monotonic() - began < 20  # 2 s, on a machine that is not busy
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (143, "released\n")
    assert error == "launch.py: SIGTERM: ended at once, for nothing had to be saved; run the same command to go on\n"


def test_a_signal_is_raised_where_nothing_must_be_saved_and_polled_where_something_must():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="SIGINT: ended at once") as caught, StopSignal(holding=False):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    assert caught.value.exit_status == 130 and signal.getsignal(signal.SIGINT) is former
    with StopSignal(holding=False) as stop:
        stop.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.received is signal.SIGTERM and stop.exit_status == 143
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.let_go()


def test_work_in_a_thread_is_left_when_a_signal_comes():
    ended = threading.Event()
    with StopSignal() as stop:
        assert stop.unless_stopped(lambda: 7) == 7
        with pytest.raises(ValueError, match="its own"):
            stop.unless_stopped(lambda: int("its own"))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert stop.unless_stopped(lambda: ended.wait(60)) is None
        assert stop.unless_stopped(lambda: 7) is None
    ended.set()
