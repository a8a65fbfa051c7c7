"""A config file for tests that start launch.py: four steps of eight phantoms, no evaluation."""

from ml_collections import ConfigDict

from tests.training.conftest import tiny_config


def get_config() -> ConfigDict:
    config = tiny_config()
    config.data.dataset = "phantom"
    config.data.builder = ConfigDict({"train": 32, "validation": 8, "test": 8, "seed": 0})
    config.training.epochs = 1
    return config
