"""Pseudonyms: names of patients and studies in records, which without the key nobody can trace back.

A hash without a key would be found by trying all identifiers. The key is a file: one that the user gives, or one that
is made once per directory of records. It lies beside the folders of records and in none of them. The same key gives the
same pseudonyms, in all data sets. Splits follow from the identifiers themselves, so no key changes them.
"""

import hashlib
import hmac
import os
import secrets
import tempfile

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, Path, read_regular, user_path

KEY_FILE = ".pseudonym_key"  # in a directory of records
_SHORTEST_KEY, _LONGEST_KEY = 16, 4096  # bytes
_LENGTH = 12  # hexadecimal digits of a pseudonym


def pseudonym(identifier: str, key: bytes) -> str:
    """The name of a patient or study in records; empty for an empty identifier."""
    return hmac.new(key, identifier.encode(), hashlib.sha256).hexdigest()[:_LENGTH] if identifier else ""


def read_key(path: AnyPath) -> bytes:
    """The key in a file, without white space around it.

    Raises UserError if the file cannot be read or is shorter than a key must be; the message does not show the key.
    """
    file = user_path(path, "pseudonym_key")
    try:
        key = read_regular(file, _LONGEST_KEY).strip()
    except OSError as error:
        raise UserError(f"pseudonym_key {file}: cannot be read ({error.strerror or error})") from None
    if len(key) < _SHORTEST_KEY:
        raise UserError(
            f"pseudonym_key {file}: has {len(key)} bytes, and a key has at least {_SHORTEST_KEY}; "
            "make one with: head -c 32 /dev/urandom | base64 > FILE"
        )
    return key


def key_of_directory(directory: Path) -> Path:
    """The key file of a directory of records, which is made if it is not there. Raises OSError.

    The caller must hold the lock of the directory.
    """
    file = directory / KEY_FILE
    if not file.exists():
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f"{KEY_FILE}.")  # only its owner may read it
        with os.fdopen(handle, "w") as made:
            made.write(secrets.token_hex(32) + "\n")
            made.flush()
            os.fsync(made.fileno())
        os.replace(temporary, file)
    return file


def fingerprint(key: bytes) -> str:
    """A name of the key itself, from which nothing follows about it."""
    return hmac.new(key, b"the key itself", hashlib.sha256).hexdigest()[:_LENGTH]
