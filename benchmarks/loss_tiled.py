"""Time and memory of the tiled local loss, forward and backward, against plain PyTorch loops of the same formula.

    python -m benchmarks.loss_tiled [--reports ../shared/data/iu_reports/NLMCXR_reports.tgz] [--repeats 7] [--batch 32]
    python -m benchmarks.loss_tiled --batch 16 32 64 128 --sides tiled [--regions 400 100]     how both grow

`loop` turns the convolution's channel-first maps for every caption, as the published loop does (that copy is most of
its 6.5 MiB of saved activations for every image-caption pair); `lean loop` is what a careful PyTorch user writes.
`low rank` (`loss.low_rank`) gets the 512-wide features and the projection of which the word level's regions are the
product, and gives the gradients of both; at the sentence level there is nothing to save, and it is `tiled`.
All sides get the same inputs: B = 16 (`--batch`) images of N regions, as many captions whose lengths are those of real
reports (Indiana University collection), D = 768, float32. They run in processes of their own on all cores and take
turns, so that a busy moment of the machine meets all; times are medians, compilation and warm-up left out. Our sides
keep the memory that they free, as training does on CPUs (`training/allocation.py`), and PyTorch's give it back, as they
do unless told; `--keep_freed all` lets both keep it, `none` neither. Memory is the growth of resident memory during one
warm run: the peak that the kernel recorded (`resource.getrusage`, its high-water mark reset through
/proc/self/clear_refs) minus the resident memory before, with libraries, inputs and compiled program in place and free
memory given back. "Working memory" leaves out the gradients themselves, which have the same size on all sides but `low
rank`. Needs Linux, PyTorch (requirements-dev.txt) and the data; prints a table and one JSON line.
"""

import argparse
import ctypes
import gc
import io
import json
import platform
import resource
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
DATA = REPOSITORY.parent / "shared" / "data"
WIDTH, FEATURES, MAX_TOKENS, SEED = 768, 512, 97, 0
TEMPERATURES = (4.0, 5.0, 10.0)
ROWS = {"word": 1444, "sentence": 361}  # regions of the shallow and of the deep map
SIDES = ("loop", "lean loop", "tiled", "low rank")
OURS = ("tiled", "low rank")


def caption_lengths(reports: Path, vocabulary: Path, batch: int) -> dict[str, list[int]]:
    """The numbers of valid words and sentences of `batch` random reports, counted as in training."""
    from data_pipelines.reports import clean_report
    from data_pipelines.tokens import load_tokenizer, tokenize

    texts = []
    with tarfile.open(reports) as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                with archive.extractfile(member) or io.BytesIO() as file:
                    parts = ElementTree.fromstring(file.read()).iter("AbstractText")
                found = {part.get("Label"): part.text or "" for part in parts}
                report = clean_report(found.get("FINDINGS", ""), found.get("IMPRESSION", ""))
                texts.append(". ".join(report.sentences))
    texts = sorted(text for text in texts if text)
    chosen = [texts[i] for i in np.random.default_rng(SEED).choice(len(texts), batch, replace=False)]
    tokens = tokenize(load_tokenizer(vocabulary), chosen, MAX_TOKENS)
    return {"word": tokens["word_count"].tolist(), "sentence": tokens["sentence_count"].tolist()}


def inputs(row: str, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [B, N, F], projection [F, D] and units [B, 97, D]; regions are features @ projection.

    Their products with units spread like those of a trained model (about 3).
    """
    rng = np.random.default_rng(SEED)
    features = rng.standard_normal((batch, ROWS[row], FEATURES), dtype=np.float32)
    projection = rng.standard_normal((FEATURES, WIDTH), dtype=np.float32) / np.float32(FEATURES**0.5)
    units = rng.standard_normal((batch, MAX_TOKENS, WIDTH), dtype=np.float32)
    units *= np.float32(0.1)
    return features, projection, units


def torch_side(row: str, counts: list[int], channels_first: bool):
    """`run()` -> loss, after one forward and backward pass."""
    import torch
    from reference.torch_losses import channel_first_similarities, cross_entropies, local_similarities

    features, projection, units = (torch.from_numpy(array) for array in inputs(row, len(counts)))
    regions = features @ projection
    del features
    if channels_first:
        side = int(ROWS[row] ** 0.5)
        regions = regions.transpose(1, 2).reshape(len(counts), WIDTH, side, side).contiguous()
        units = units.transpose(1, 2).contiguous()
    regions, units = regions.requires_grad_(), units.requires_grad_()
    similarities = channel_first_similarities if channels_first else local_similarities

    def run() -> float:
        loss = sum(cross_entropies(similarities(regions, units, counts, TEMPERATURES)))
        loss.backward()
        regions.grad = units.grad = None
        return loss.item()

    return run


def our_side(row: str, counts: list[int], low_rank: bool):
    """`run()` -> loss, compiled ahead."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses import contrast
    from afloc_jax.losses.low_rank import reduce_rank
    from afloc_jax.losses.settings import LossSettings
    from afloc_jax.losses.tiled import grouped_similarity, local_similarity

    settings = LossSettings(*TEMPERATURES)

    def loss(differentiable, counts):
        if not low_rank:
            regions, units = differentiable
            return sum(contrast(local_similarity(regions, units, counts, settings)), start=0.0)
        features, kernel, units = differentiable
        projection, units, norms = reduce_rank(kernel, units)
        grouped = grouped_similarity(features[None], units[None], counts[None], settings, norms[None], projection)
        return sum(contrast(grouped[0]), start=0.0)

    features, projection, units = map(jnp.asarray, inputs(row, len(counts)))
    differentiable = (features, projection, units) if low_rank else (features @ projection, units)
    del features
    arrays = [jax.block_until_ready(differentiable), jnp.array(counts, jnp.int32)]
    step = jax.jit(jax.value_and_grad(loss)).lower(*arrays).compile()

    def run() -> float:
        value, _ = jax.block_until_ready(step(*arrays))
        return float(value)

    return run


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def work(side: str, row: str, counts: list[int], keep_freed: str) -> None:
    """The worker process: it prints the memory of one run, then times one run for every line that it reads."""
    from afloc_jax.training.allocation import keep_freed_memory

    if keep_freed == "all" or (keep_freed == "ours" and side in OURS):
        keep_freed_memory()
    if side in OURS:
        run = our_side(row, counts, low_rank=side == "low rank" and row == "word")
    else:
        run = torch_side(row, counts, channels_first=side == "loop")
    run()  # what libraries set up once is not counted
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or free memory of earlier work would hide some of the growth
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib()
    loss = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"loss": loss, "before_mib": before, "peak_mib": peak}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def gradients_mib(row: str, batch: int, side: str) -> float:
    """The MiB of the gradients of regions and units, or, with low rank, of features, projection and units."""
    numbers = batch * (ROWS[row] + MAX_TOKENS) * WIDTH
    if row == "word" and side == "low rank":
        numbers += FEATURES * WIDTH - batch * ROWS[row] * (WIDTH - FEATURES)
    return 4 * numbers / 2**20


def measure(row: str, counts: list[int], repeats: int, sides: list[str], keep_freed: str) -> dict:
    """Measures all sides of one row in turn."""
    command = [sys.executable, __file__, "--counts", json.dumps(counts), "--row", row]
    command += ["--regions", *map(str, ROWS.values()), "--keep_freed", keep_freed, "--worker"]
    workers, result = {}, {}
    for side in sides:
        worker = subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin and worker.stdout
        workers[side] = worker, worker.stdin, worker.stdout
        result[side] = json.loads(worker.stdout.readline())
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        print(f"{row} level, {len(counts)} pairs: round {repeat + 1} of {repeats}", file=sys.stderr)
        for side, (_, commands, answers) in workers.items():
            commands.write("\n")
            commands.flush()
            times[side].append(json.loads(answers.readline()))
    gradients = {side: gradients_mib(row, len(counts), side) for side in sides}
    for side, (worker, commands, _) in workers.items():
        commands.close()
        worker.wait()
        wall, cpu = np.array(times[side]).T
        growth = result[side]["peak_mib"] - result[side]["before_mib"]
        result[side] |= {"seconds": float(np.median(wall)), "fastest": float(wall.min()), "slowest": float(wall.max())}
        result[side] |= {
            "cpu_seconds": float(np.median(cpu)),
            "growth_mib": growth,
            "working_mib": growth - gradients[side],
        }
    ratios = {}
    for ours in (side for side in sides if side in OURS):
        for side in (side for side in sides if side not in OURS):
            np.testing.assert_allclose(result[ours]["loss"], result[side]["loss"], rtol=1e-4)
            ratios[f"{side} / {ours}"] = {
                key: result[side][key] / result[ours][key] for key in ("seconds", "growth_mib", "working_mib")
            }
    return result | {"gradients_mib": gradients, "ratios": ratios}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def print_table(rows: dict, sizes: dict, sides: list[str]) -> None:
    """All rows, their ratios, and with several batch sizes the slopes on log axes."""
    print(
        "| level | pairs | regions | units | side | median s (range) | CPU s | before MiB | growth MiB | working MiB |"
    )
    print("|---" * 10 + "|")
    for (batch, row), result in rows.items():
        for side in sides:
            r = result[side]
            print(
                f"| {row} | {batch} | {ROWS[row]} | {sum(sizes[batch][row])} | {side} "
                f"| {r['seconds']:.2f} ({r['fastest']:.2f} to {r['slowest']:.2f}) | {r['cpu_seconds']:.2f} "
                f"| {r['before_mib']:.0f} | {r['growth_mib']:.0f} | {r['working_mib']:.0f} |"
            )
        for sides_of, ratio in result["ratios"].items():
            print(
                f"| {row} | {batch} | | | {sides_of} | **{ratio['seconds']:.1f} x** | | | "
                f"**{ratio['growth_mib']:.1f} x** | **{ratio['working_mib']:.1f} x** |"
            )
    for batch in sizes:
        print_both_levels(batch, [rows[batch, row] for row in ROWS], sides)
    batches = list(sizes)
    for row in ROWS if len(batches) > 1 else []:
        for side in sides:
            slopes = [
                np.polyfit(np.log(batches), np.log([rows[batch, row][side][key] for batch in batches]), 1)[0]
                for key in ("seconds", "growth_mib")
            ]
            print(f"{row}, {side}: time grows with batch ** {slopes[0]:.2f}, memory with batch ** {slopes[1]:.2f}")


def print_both_levels(batch: int, results: list[dict], sides: list[str]) -> None:
    """The two levels one after the other: sums of their times, the larger of their growths."""
    seconds = {side: sum(result[side]["seconds"] for result in results) for side in sides}
    growth = {side: max(result[side]["growth_mib"] for result in results) for side in sides}
    for ours in (side for side in sides if side in OURS):
        for side in (side for side in sides if side not in OURS):
            print(
                f"| both | {batch} | | | {side} / {ours} | **{seconds[side] / seconds[ours]:.1f} x** | | "
                f"| **{growth[side] / growth[ours]:.1f} x** | |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=DATA / "iu_reports" / "NLMCXR_reports.tgz")
    parser.add_argument("--vocabulary", type=Path, default=DATA / "vocab")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[16], metavar="B", help="pairs")
    parser.add_argument("--regions", type=int, nargs=2, default=list(ROWS.values()), metavar="N", help="word, sentence")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--keep_freed", choices=("ours", "all", "none"), default="ours", help="which sides keep memory")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    ROWS.update(zip(ROWS, arguments.regions, strict=True))
    if arguments.worker:
        work(arguments.worker, arguments.row, arguments.counts, arguments.keep_freed)
        return
    sizes = {batch: caption_lengths(arguments.reports, arguments.vocabulary, batch) for batch in arguments.batch}
    rows = {
        (batch, row): measure(row, lengths[row], arguments.repeats, arguments.sides, arguments.keep_freed)
        for batch, lengths in sizes.items()
        for row in ROWS
    }
    print_table(rows, sizes, arguments.sides)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "cpu": processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "torch", "numpy")},
        "repeats": arguments.repeats,
        "lengths": sizes,
        "rows": {f"{row}, {batch} pairs": result for (batch, row), result in rows.items()},
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
