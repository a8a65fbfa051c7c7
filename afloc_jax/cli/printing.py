"""The closing lines that several commands print."""

import sys
from collections.abc import Sequence
from pathlib import Path


def finish_images(now: int, before: int, failed: Sequence[str], out: Path) -> int:
    """Prints the number of images that were processed, now and by earlier calls; returns the exit status."""
    earlier = f" ({before} before)" if before else ""
    done = now + before
    if not failed:
        print(f"{done} image{'s' if done != 1 else ''} done{earlier}, results in {out}")
        return 0
    total = done + len(failed)
    print(f"afloc: {len(failed)} of {total} images failed{earlier}, the others are in {out}", file=sys.stderr)
    return 1


def print_summary(summary, out: Path) -> None:
    width = max(10, *(len(metric) for metric in summary["metrics"]))
    for metric, values in summary["metrics"].items():
        overall = values["overall"]
        if overall["mean"] is not None:
            limits = "" if overall["lower"] is None else f"  [{overall['lower']:.3f}, {overall['upper']:.3f}]"
            print(f"{metric:{width}s} {overall['mean']:7.3f}{limits}")
    print(f"{summary['n']} samples, results in {out}")
