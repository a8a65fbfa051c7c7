"""How failures are put into one line."""

import errno

from afloc_jax.errors import UsageError, is_no_space
from afloc_jax.training.failures import explain


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
