"""`python -m afloc_jax` runs the `afloc` command, and so does this file by its path."""

import sys
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afloc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
