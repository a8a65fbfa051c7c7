"""Hostile inputs by group, and what the real commands do with them.

    python -m benchmarks.hostile [--group NAME ...] [--names]

Each input is a small valid folder with one thing in it made bad (the modules beside this one). The command reads
it in a process that handles one input after another, with a limit of time and of memory for each. Prints a table by
group: inputs; refused, in one line or by naming what was left out; accepted because harmless, that is with the result
of the valid folder; crashes of the process; hangs; silent: accepted without a word, with another result; tracebacks:
internal errors, and errors of more than 2,000 letters. The exit status is 1 if one of the last four is not 0. --names
prints every input and what became of it. It takes a few minutes on two cores.
"""

import argparse
import sys

from benchmarks.hostile.table import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", default=[], metavar="NAME", help="only this group; repeatable")
    parser.add_argument("--names", action="store_true", help="print every input and what became of it")
    given = parser.parse_args()
    return report(given.group, given.names)


if __name__ == "__main__":
    sys.exit(main())
