"""configs/demo.py with fewer phantoms, for benchmarks/soak.py."""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    phantoms = demo.PHANTOMS | {"train": 640, "validation": 128, "test": 40}
    config.data.builder = ConfigDict(phantoms)
    for entry in config.evaluation.datasets:
        entry.builder = ConfigDict(phantoms)
    return config
