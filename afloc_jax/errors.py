"""Errors that a user caused or can mend, and the causes behind a library's error."""

import errno
from collections.abc import Iterator

_NO_SPACE = ("no space left on device", "disk quota exceeded")


class UserError(Exception):
    """A wrong call or unusable input; the message is one line: what was wrong, where, what to do.

    `exit_status` is what the command line exits with: 2 for a wrong call, 1 for work that failed.
    """

    exit_status = 1


class UsageError(UserError):
    """A wrong flag, config key or value."""

    exit_status = 2


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_no_space(error: BaseException) -> bool:
    """Whether a full disk is behind `error`, also where a library wrapped the system's error in its own."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(phrase in str(link).lower() for phrase in _NO_SPACE):
            return True
    return False
