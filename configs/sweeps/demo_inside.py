"""Softer maxima over regions for the demo, which pay more for the inside of a finding; two seeds each. Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/demo_inside.py --workdir=runs/demo_inside [--dry_run]

The relevance of a sentence is (1/k) log mean exp(k cosine), k = `loss.region_sharpness`. A finding of twice the regions
gains (log 2) / k, and a region gets a share exp(k cosine) of the gradient: the smaller k, the more its inside counts
beside its most distinctive border. No test phantom is scored. `python -m benchmarks.map_choices` compares the models on
phantoms of their own, with `--by_class` for the names of classes.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for seed in (1, 2):
        for k in (8.0, 11.0, config.loss.region_sharpness):
            yield {
                "name": f"sharpness{k:g}_seed{seed}",
                "loss.region_sharpness": k,
                "seed": seed,
                "evaluation.datasets": (),
            }
