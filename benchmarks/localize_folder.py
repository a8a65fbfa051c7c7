"""Folders through `afloc localize`: its time beside that of decoding and of the network, and its memory.

    python -m benchmarks.localize_folder [--config demo|afloc | --model FOLDER] [--large 12] [--small 64] [--rounds 5]
        [--films 2000]

The model has the architecture of configs/<config>.py and random weights, or is that of a folder. Five prompts are
localised. The sides alternate, so that other work on the machine affects all of them, and ratios are those within a
round; the program prints their medians and ranges, and one JSON line. Times are those of all cores together that the
process used (CPU seconds), or with --wall those of a clock, for a machine that does nothing else.

- `large`: PNG files of 3000 x 2542 pixels, boxes only (no maps, no overlays), beside the sum of decoding (from the file
  to the square that the network reads, in as many threads) and of the image network.
- `small`: PNG files of 512 x 512 pixels, boxes only, and with the overlays that folders get: images per second, as a
  share of the network's.
- `second`: `Model.localize` of one 512-pixel image with prompts that it knows, beside the image network's time for it:
  of another image each time, and (`further`) of one image that it was asked about before.
- `memory`: the resident memory while so many films of 512 x 430 pixels are localised with overlays, for one prompt,
  read after each: its peak in each hundred films, and the largest of the later ones beside that of films 101 to 200.

Files are written before, so that reading them takes no disk. Loading the model is left out.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from afloc_jax.inference import files
from afloc_jax.inference.batching import in_threads
from afloc_jax.inference.model import Model, load
from afloc_jax.inference.outputs import Outputs
from afloc_jax.inference.towers import initial_variables
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import save_model
from benchmarks.full_size import PROMPTS
from benchmarks.prepare_images import radiograph
from configs import afloc, demo
from data_pipelines.images import read_image
from data_pipelines.tokens import learn_tokenizer

BOXES_ONLY = Outputs(maps="none", overlays="none")
LARGE, SMALL, MIDDLE = (3000, 2542), (512, 512), (512, 430)
DISTINCT = 8
CONFIGS = {"demo": demo, "afloc": afloc}
CLOCK: list[Callable[[], float]] = [time.process_time]


def write_pngs(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Writes PNG films of height x width pixels; after the first few they are links to these."""
    folder.mkdir()
    made = [folder / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(made):
        if number < DISTINCT:
            pixels = cv2.resize(radiograph(number), size[::-1], interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(path), pixels)
        else:
            os.link(made[number % DISTINCT], path)
    return made


class Localizing:
    """`localize_files` of one loaded model, always anew."""

    def __init__(self, model: Model, folder: Path, out: Path):
        self.model, self.folder, self.out = model, folder, out
        files.load = lambda folder: self.model  # type: ignore[assignment, misc]

    def __call__(self, images: Path, outputs: Outputs, prompts: Sequence[str] = PROMPTS) -> None:
        done = files.localize_files(self.folder, [images], prompts, self.out, outputs=outputs, anew=True)
        assert done.now and not done.failed


def network(model: Model, squares: np.ndarray) -> None:
    """The image network alone, in the batches of `localize_files`."""
    model.embed_squares(squares)


def seconds(work: Callable[[], object]) -> float:
    """The seconds of one call."""
    started = CLOCK[0]()
    work()
    return CLOCK[0]() - started


def told(name: str, values: list[float], result: dict[str, float]) -> None:
    """Prints the median and the range of some ratios, and keeps the median."""
    result[name] = statistics.median(values)
    print(f"{name:42s} {result[name]:6.2f} ({min(values):.2f} to {max(values):.2f})")


def squares_of(model: Model, images: list[Path]) -> np.ndarray:
    return np.stack([model.square_of(image)[0] for image in images])


def compare_large(model: Model, localize: Localizing, folder: Path, count: int, rounds: int, result: dict) -> None:
    images = write_pngs(folder, LARGE, count)
    squares = squares_of(model, images)
    ratios, decode, net = [], [], []
    for number in range(rounds + 1):
        decoding = seconds(lambda: in_threads(model.square_of, images))
        running = seconds(lambda: network(model, squares))
        whole = seconds(lambda: localize(folder, BOXES_ONLY))
        if number:  # the first compiles
            ratios.append(whole / (decoding + running))
            decode.append(decoding / count)
            net.append(running / count)
    told("large: localize / (decoding + network)", ratios, result)
    told("large: seconds of decoding an image", decode, result)
    told("large: seconds of the network an image", net, result)


def compare_small(model: Model, localize: Localizing, folder: Path, count: int, rounds: int, result: dict) -> None:
    images = write_pngs(folder, SMALL, count)
    squares = squares_of(model, images)
    boxes, overlays, rate, second, further = [], [], [], [], []
    pixels = read_image(images[0])
    others = (np.roll(pixels, shift, axis=1) for shift in itertools.count())
    for number in range(rounds + 1):
        running = seconds(lambda: network(model, squares))
        only = seconds(lambda: localize(folder, BOXES_ONLY))
        drawn = seconds(lambda: localize(folder, Outputs()))
        alone = statistics.median(seconds(lambda: network(model, squares[:1])) for _ in range(9))
        asked = [[next(others)] for _ in range(9)]
        again = statistics.median(seconds(functools.partial(model.localize, other, PROMPTS)) for other in asked)
        same = statistics.median(seconds(lambda: model.localize([pixels], PROMPTS)) for _ in range(9))
        if number:
            boxes.append(running / only)
            overlays.append(running / drawn)
            rate.append(count / running)
            second.append(again / alone)
            further.append(same / alone)
    told("small: rate of localize / of the network", boxes, result)
    told("small: the same with overlays", overlays, result)
    told("small: images per second of the network", rate, result)
    told("second: a call with known prompts / network", second, result)
    told("further: the same about the same image / network", further, result)


def resident() -> float:
    """The resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch_memory(localize: Localizing, folder: Path, count: int, result: dict) -> None:
    write_pngs(folder, MIDDLE, count)
    write, kept = files.write_image, []

    def watched(*given: object) -> dict:
        entry = write(*given)  # type: ignore[arg-type]
        kept.append(resident())
        return entry

    files.write_image = watched  # type: ignore[assignment]
    localize(folder, Outputs(), PROMPTS[:1])
    files.write_image = write
    peaks = [max(kept[start : start + 100]) for start in range(100, count, 100)]
    result["memory: MiB, films 101 to 200"] = peaks[0]
    result["memory: largest of later hundreds / that"] = max(peaks[1:]) / peaks[0]
    print(f"memory, MiB: {max(kept[:100]):.0f} in the first hundred, then {' '.join(f'{peak:.0f}' for peak in peaks)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=[*CONFIGS], default="demo")
    parser.add_argument("--model", type=Path, help="a model folder in place of random weights")
    parser.add_argument("--large", type=int, default=12, help="films of 3000 x 2542 (default: %(default)s)")
    parser.add_argument("--small", type=int, default=64, help="films of 512 x 512 (default: %(default)s)")
    parser.add_argument(
        "--films", type=int, default=2000, help="films for memory; 0 leaves it out (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--wall", action="store_true", help="measure by the clock instead of CPU seconds")
    given = parser.parse_args()
    if given.wall:
        CLOCK[0] = time.perf_counter
    what, cores = given.model or given.config, len(os.sched_getaffinity(0))
    print(f"{what}, {len(PROMPTS)} prompts, {cores} cores, {sys.version.split()[0]}")
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        place = given.model or write_model(root / "model", given.config)
        model = load(place)
        localize = Localizing(model, place, root / "out")
        if given.large:
            compare_large(model, localize, root / "large", given.large, given.rounds, result)
        if given.small:
            compare_small(model, localize, root / "small", given.small, given.rounds, result)
        if given.films:
            watch_memory(localize, root / "middle", given.films, result)
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


def write_model(folder: Path, config: str) -> Path:
    """Writes the model of a recipe with random weights."""
    wanted, tokenizer = CONFIGS[config].get_config(), learn_tokenizer(PROMPTS)
    wanted.model.text.bert.vocab_size = tokenizer.get_vocab_size()
    run = RunConfig.from_config(wanted)
    save_model(folder, initial_variables(run.model, seed=1), run, tokenizer, {})
    return folder


if __name__ == "__main__":
    main()
