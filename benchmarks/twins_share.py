"""How many pairs of reports in a batch are twins, that is, have the same text (`loss.twins`); needs no device.

    python -m benchmarks.twins_share --phantoms 16384
    python -m benchmarks.twins_share --records DIR/pairs-...-... [--split train]     (a folder of prepared records)
    python -m benchmarks.twins_share --reports NLMCXR_reports.tgz                    (Open-i's XML, without images)

Reports of phantoms are written without drawing their images. For each way to draw sentences (`data.sentences`) and each
batch size the reports are shuffled, drawn and split into full batches, at most --batches of them. The table has, for
sentences (word and sentence level) and for whole reports (report level): the share of twins among the pairs of two
reports, which is what training logs as `twins/local` and `twins/report`, and the share of reports with a twin.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt32

from afloc_jax.cli.arguments import count
from benchmarks.clean_reports import reports as open_i
from data_pipelines.batches import sample_sentences
from data_pipelines.builders.phantom.generate import draw
from data_pipelines.builders.phantom.reporting import report
from data_pipelines.hashes import text_hashes
from data_pipelines.reading import RecordSource
from data_pipelines.reports import clean_sections
from data_pipelines.settings import SentenceSampling

Report = tuple[list[str], int]  # sentences, and how many of them are the impression's
Counts = tuple[float, float]  # share of twins among the pairs of two, share of reports with a twin


def of_phantoms(number: int) -> Iterator[Report]:
    for index in range(number):
        _, changes, rngs = draw(0, "train", index)
        yield report(changes, rngs["report"])


def of_records(folder: Path, split: str) -> Iterator[Report]:
    source = RecordSource(folder, split)
    for row in range(len(source)):
        pair = source.pair(row)
        yield pair.sentences, pair.impression_count


def of_open_i(path: Path) -> Iterator[Report]:
    for content in open_i(path):
        parts = {
            node.get("Label", ""): node.text or "" for node in ElementTree.fromstring(content).iter("AbstractText")
        }
        cleaned = clean_sections(parts.get("FINDINGS", ""), parts.get("IMPRESSION", ""), compatible=False)
        yield cleaned.sentences, cleaned.impression_count


def counted(keys: Sequence[set[int]]) -> Counts:
    """Counts of a batch whose reports i and j are twins where `keys[i]` and `keys[j]` have an element in common."""
    places = defaultdict[int, list[int]](list)
    for place, own in enumerate(keys):
        for key in own:
            places[key].append(place)
    twins = np.array([len(set().union(*(places[key] for key in own)) - {place}) for place, own in enumerate(keys)])
    return twins.sum() / (len(keys) * (len(keys) - 1)), np.count_nonzero(twins) / len(keys)


def _numbers(hashes: UInt32[np.ndarray, "*S 2"]) -> np.ndarray:
    wide = hashes.astype(np.uint64)
    return wide[..., 0] << np.uint64(32) | wide[..., 1]


def local_keys(drawn: Sequence[Sequence[str]], max_tokens: int) -> list[set[int]]:
    return [set(row[row > 0].tolist()) for row in _numbers(text_hashes(drawn, max_tokens)["sentence_hashes"])]


def report_keys(drawn: Sequence[Sequence[str]], max_tokens: int) -> list[set[int]]:
    return [{number} for number in _numbers(text_hashes(drawn, max_tokens)["report_hash"]).tolist()]


KINDS: dict[str, Callable[[Sequence[Sequence[str]], int], list[set[int]]]] = {
    "sentences": local_keys,
    "reports": report_keys,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--phantoms", type=count, metavar="COUNT", help="reports of phantoms, seed 0")
    where.add_argument("--records", type=Path, metavar="FOLDER", help="a folder of prepared records")
    where.add_argument("--reports", type=Path, metavar="PATH", help="folder or archive of Open-i's reports")
    parser.add_argument("--split", default="train", help="of --records")
    parser.add_argument("--batch", type=count, nargs="+", default=[128, 16384], metavar="B")
    parser.add_argument("--batches", type=count, default=100, help="at most so many of each size")
    parser.add_argument("--max_tokens", type=count, default=97, help="as data.max_tokens")
    given = parser.parse_args()
    if given.phantoms:
        source = of_phantoms(given.phantoms)
    else:
        source = of_records(given.records, given.split) if given.records else of_open_i(given.reports)
    reports = [each for each in source if each[0]]
    print(f"{len(reports):,} reports with a sentence")
    print(f"{'drawn':10s} {'batch':>7s} {'batches':>7s}  {'twins':9s} {'of pairs':>9s} {'reports with one':>16s}")
    modes: tuple[SentenceSampling, ...] = "subset", "impression", "all"
    for mode in modes:
        for size in given.batch:
            if size > len(reports):
                print(f"{mode:10s} {size:7,} there are not so many reports")
                continue
            rng = np.random.default_rng(0)
            order = rng.permutation(len(reports))[: min(len(reports) // size, given.batches) * size]
            drawn = [sample_sentences(reports[row][0], reports[row][1], mode, rng) for row in order]
            batches = [drawn[first : first + size] for first in range(0, len(drawn), size)]
            for kind, keys in KINDS.items():
                of_pairs, of_reports = np.mean([counted(keys(batch, given.max_tokens)) for batch in batches], axis=0)
                print(f"{mode:10s} {size:7,} {len(batches):7d}  {kind:9s} {of_pairs:9.3%} {of_reports:16.1%}")


if __name__ == "__main__":
    main()
