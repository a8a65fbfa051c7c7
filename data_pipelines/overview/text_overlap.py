"""Reports that stand in two splits in nearly the same words.

Two texts are near-identical when their sets of three-word runs overlap by at least a given share (Jaccard index).
Candidates come from MinHash signatures in bands (Broder 1997; Indyk and Motwani 1998), so that a quarter of a million
reports need no quarter of a million squared comparisons; every candidate pair is then compared exactly.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_HASHES, _ROWS = 64, 4  # 16 bands of 4: a pair that overlaps by 0.9 is missed with probability 3e-8
_PRIME = (1 << 31) - 1
_RUN = 3  # words


def runs_of_words(text: str) -> frozenset[int]:
    """Hashes of the runs of three words of a text; of a shorter text the hash of the whole."""
    words = text.split()
    runs = {" ".join(words[k : k + _RUN]) for k in range(max(1, len(words) - _RUN + 1))}
    return frozenset(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest()) % _PRIME for run in runs)


def overlapping(texts: Sequence[str], groups: Sequence[str], threshold: float = 0.9) -> set[int]:
    """Positions of texts that have a near-identical one in another group.

    Args:
        texts: cleaned reports; empty ones are never near-identical.
        groups: the split of each text.
        threshold: smallest Jaccard index of the sets of three-word runs.
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(1, _PRIME, _HASHES, dtype=np.int64)[:, None]
    offsets = rng.integers(0, _PRIME, _HASHES, dtype=np.int64)[:, None]
    positions = [k for k, text in enumerate(texts) if text]
    unique: dict[frozenset[int], list[int]] = defaultdict(list)
    for k in positions:
        unique[runs_of_words(texts[k])].append(k)
    sets = list(unique)
    members = list(unique.values())
    found: set[int] = set()
    for same in members:  # identical sets
        if len({groups[k] for k in same}) > 1:
            found.update(same)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, runs in enumerate(sets):
        values = np.fromiter(runs, np.int64)
        signature = ((factors * values[None] + offsets) % _PRIME).min(axis=1)
        for band in range(0, _HASHES, _ROWS):
            buckets[band, signature[band : band + _ROWS].tobytes()].append(number)
    for bucket in buckets.values():
        for place, first in enumerate(bucket):
            for second in bucket[place + 1 :]:
                in_both = {groups[k] for k in (*members[first], *members[second])}
                if len(in_both) > 1 and _jaccard(sets[first], sets[second]) >= threshold:
                    found.update(k for k in members[first] if in_both - {groups[k]})
                    found.update(k for k in members[second] if in_both - {groups[k]})
    return found


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    common = len(first & second)
    return common / (len(first) + len(second) - common)
