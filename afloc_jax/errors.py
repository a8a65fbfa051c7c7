"""Errors that a user can correct, and the causes behind the error of a library."""

import errno
from collections.abc import Iterator

_LONGEST = 1500  # letters of a message; what a file holds may be repeated in it
_NO_SPACE = ("no space left on device", "disk quota exceeded")


class UserError(Exception):
    """A wrong call or unusable input. The message is one line that says what was wrong, where, and what to do.

    `exit_status` is the exit status of the command line: 2 for a wrong call, 1 for work that failed.

    >>> str(UserError("a.png: the file is empty")), UserError.exit_status
    ('a.png: the file is empty', 1)
    """

    exit_status = 1

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text) - _LONGEST:,} more letters)"


class UsageError(UserError):
    """A wrong flag, config key or value.

    >>> issubclass(UsageError, UserError), UsageError.exit_status
    (True, 2)
    """

    exit_status = 2


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_no_space(error: BaseException) -> bool:
    """Whether `error` was caused by a full disk, also where a library wrapped the system's error in its own."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(phrase in str(link).lower() for phrase in _NO_SPACE):
            return True
    return False
