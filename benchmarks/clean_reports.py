"""Statistics of the cleaning of real reports: sentences that are kept and left out, with the reasons.

    python -m benchmarks.clean_reports --raw NLMCXR_reports.tgz

The program reads the XML reports of Open-i (an archive or a folder). It lists the sentences that are left out: they
have no letter, so no report text is shown.
"""

import argparse
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data_pipelines.reports import clean_sections, rejected_sentences, split_sentences


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="folder or archive of XML reports")
    given = parser.parse_args()
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
