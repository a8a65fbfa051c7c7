"""Counting of twins (benchmarks/twins_share.py) against what the losses see."""

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.levels import TextHashes
from afloc_jax.losses.twins import find_twins
from benchmarks.twins_share import counted, local_keys, report_keys
from data_pipelines.hashes import text_hashes


def test_counts_are_those_of_the_losses():
    rng = np.random.default_rng(0)
    drawn = [[f"sentence {word}" for word in rng.integers(0, 30, rng.integers(1, 4))] for _ in range(40)]
    drawn[7] = drawn[3]
    made = text_hashes(drawn, 16)
    hashes = TextHashes(jnp.asarray(made["report_hash"]), jnp.asarray(made["sentence_hashes"]))
    twins = find_twins(hashes, jnp.ones(len(drawn), bool), len(drawn))
    for kind, keys in (("local", local_keys), ("report", report_keys)):
        found = counted(keys(drawn, 16))
        others = np.asarray(twins.pairs[kind]) & ~np.eye(len(drawn), dtype=bool)
        assert found[0] == pytest.approx(float(twins.shares[kind]), rel=1e-6)
        assert found[1] == others.any(axis=1).mean() > 0
