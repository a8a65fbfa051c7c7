"""`python -m afloc_jax` runs the `afloc` command."""

import sys

from afloc_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
