"""Errors that a user caused or can mend."""


class UserError(Exception):
    """A wrong call or unusable input; the message is one line: what was wrong, where, what to do.

    `exit_status` is what the command line exits with: 2 for a wrong call, 1 for work that failed.
    """

    exit_status = 1


class UsageError(UserError):
    """A wrong flag, config key or value."""

    exit_status = 2
