"""Statistics of the cleaning of real reports, and the time that long texts take.

    python -m benchmarks.clean_reports --raw NLMCXR_reports.tgz
    python -m benchmarks.clean_reports --megabytes 11

The first reads the XML reports of Open-i (an archive or a folder) and prints which sentences are kept and left out,
with the reasons. Those that are left out have no letter, so no report text is shown.

The second cleans, splits and tokenises so many megabytes of made-up sentences, once as 30,000 reports and once as a
single text, and prints the seconds.
"""

import argparse
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data_pipelines.reports import clean_report, clean_sections, rejected_sentences, split_sentences
from data_pipelines.tokens import SentenceTokenizer, learn_tokenizer

REPORTS = 30_000
WORDS = (
    "the heart is normal in size no pneumothorax or pleural effusion small left right basal opacity atelectasis mild "
    "cardiomegaly lungs are clear unchanged from prior examination approx. 1.5 cm nodule in upper lobe dr. was called"
)


def reports(path: Path) -> Iterator[bytes]:
    """The XML files of a folder or of a .tgz archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*.xml")):
            yield file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".xml") else None
            if content is not None:
                yield content.read()


def measure(size: int) -> None:
    """Prints the seconds for texts of so many characters in all."""
    rng = np.random.default_rng(0)
    words = np.array(WORDS.split())
    lengths = rng.integers(3, 14, size // 40)
    sentences = [f"{' '.join(words[rng.integers(len(words), size=length)])}." for length in lengths]
    whole = " ".join(sentences)[:size]
    step = len(whole) // REPORTS + 1
    reports = [whole[start : start + step] for start in range(0, len(whole), step)]
    tokenizer = learn_tokenizer(sentences[:2000], 400)
    for name, texts in ((f"{len(reports):,} reports", reports), ("one text", [whole])):
        began = time.perf_counter()
        cleaned = [clean_report(text).sentences for text in texts]
        split = time.perf_counter()
        read = SentenceTokenizer(tokenizer, 97)
        for start in range(0, len(cleaned), 128):
            read(cleaned[start : start + 128])
        done = time.perf_counter()
        count = sum(map(len, cleaned))
        print(
            f"{name}, {sum(map(len, texts)) / 1e6:.1f} MB, {count:,} sentences: cleaned and split in "
            f"{split - began:.1f} s, tokenised in {done - split:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--raw", type=Path, help="folder or archive of XML reports")
    what.add_argument("--megabytes", type=int, help="measure the time of so much text")
    given = parser.parse_args()
    if given.megabytes:
        measure(given.megabytes * 10**6)
        return
    counts: Counter[str] = Counter()
    left_out: Counter[tuple[str, str]] = Counter()
    for content in reports(given.raw):
        root = ElementTree.fromstring(content)
        parts = {node.get("Label", ""): node.text or "" for node in root.iter("AbstractText")}
        findings, impression = parts.get("FINDINGS", ""), parts.get("IMPRESSION", "")
        default = clean_sections(findings, impression, compatible=False)
        release = clean_sections(findings, impression, compatible=True)
        rejected = [entry for text in (findings, impression) for entry in rejected_sentences(text)]
        left_out.update(rejected)
        counts["reports"] += 1
        counts["reports without a sentence"] += not default.sentences
        counts["sentences kept"] += len(default.sentences)
        written = len(split_sentences(findings)) + len(split_sentences(impression))
        counts["sentences that repeat another of their report"] += written - len(default.sentences)
        counts["sentences without a letter"] += len(rejected)
        counts["compatible: reports without a sentence"] += not release.sentences
        counts["compatible: sentences kept"] += len(release.sentences)
    for name, count in counts.items():
        print(f"{count:8,} {name}")
    for (piece, reason), count in left_out.most_common():
        print(f"{count:8,} x {piece!r}: {reason}")


if __name__ == "__main__":
    main()
