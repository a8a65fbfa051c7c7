"""Near-identical reports in different splits.

Two texts are near-identical when the Jaccard index of their sets of three-word runs reaches a threshold. Candidate
pairs come from banded MinHash signatures (Broder 1997; Indyk and Motwani 1998), because comparing all pairs of a
quarter of a million reports would take too long. Each candidate pair is then compared exactly.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
from jaxtyping import Int64

_HASHES, _ROWS = 64, 4  # 16 bands of 4: a pair that overlaps by 0.9 is missed with probability 3e-8
_PRIME = (1 << 31) - 1
_RUN = 3  # words


def runs_of_words(text: str) -> Int64[np.ndarray, " runs"]:
    """The sorted distinct hashes of all runs of three words in a text. A shorter text is one run."""
    words = text.split()
    runs = {" ".join(words[k : k + _RUN]) for k in range(max(1, len(words) - _RUN + 1))}
    hashes = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest()) % _PRIME for run in runs]
    return np.unique(np.array(hashes, np.int64))


def overlapping(texts: Sequence[str], groups: Sequence[str], threshold: float = 0.9) -> set[int]:
    """The indices of texts that have a near-identical text in another group.

    Args:
        texts: cleaned reports; empty ones are never near-identical.
        groups: the split of each text.
        threshold: the smallest Jaccard index of near-identical texts.
    """
    members: dict[bytes, list[int]] = defaultdict(list)  # set of runs -> texts that have this set
    for k, text in enumerate(texts):
        if text:
            members[runs_of_words(text).tobytes()].append(k)
    near = {k for same in members.values() if len({groups[k] for k in same}) > 1 for k in same}
    for first, second in _candidates(members, groups):
        if not (near.issuperset(members[first]) and near.issuperset(members[second])) and (
            _jaccard(np.frombuffer(first, np.int64), np.frombuffer(second, np.int64)) >= threshold
        ):
            both = {groups[k] for k in (*members[first], *members[second])}
            near.update(k for k in (*members[first], *members[second]) if both - {groups[k]})
    return near


def _candidates(members: dict[bytes, list[int]], groups: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of sets that share a band of their signatures and occur in different groups."""
    rng = np.random.default_rng(0)
    factors = rng.integers(1, _PRIME, _HASHES, dtype=np.int64)[:, None]
    offsets = rng.integers(0, _PRIME, _HASHES, dtype=np.int64)[:, None]
    buckets: dict[tuple[int, bytes], dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for runs, same in members.items():
        signature = ((factors * np.frombuffer(runs, np.int64)[None] + offsets) % _PRIME).min(axis=1)
        for band in range(0, _HASHES, _ROWS):
            for group in {groups[k] for k in same}:
                buckets[band, signature[band : band + _ROWS].tobytes()][group].append(runs)
    for by_group in buckets.values():
        for one, other in combinations(sorted(by_group), 2):
            yield from product(by_group[one], by_group[other])


def _jaccard(first: Int64[np.ndarray, " a"], second: Int64[np.ndarray, " b"]) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
