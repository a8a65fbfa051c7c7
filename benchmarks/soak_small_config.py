"""A network and phantoms that train in seconds, for benchmarks/soak.py --small and --launches."""

from ml_collections import ConfigDict

from benchmarks import soak_config


def get_config() -> ConfigDict:
    config = soak_config.get_config()
    phantoms = {"train": 64, "validation": 16, "test": 8, "seed": 0}
    config.data.builder = ConfigDict(phantoms)
    for entry in config.evaluation.datasets:
        entry.builder = ConfigDict(phantoms)
    config.data.max_tokens = 32
    config.model.projection_dim = 16
    config.model.image.input_size = 32
    config.model.image.options = ConfigDict({"widths": (4, 8, 8), "stem_width": 4})
    config.model.text.bert = ConfigDict(
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        | {"vocab_size": 120, "max_position_embeddings": 48}
    )
    config.model.text.last_layers = 1
    config.training.batch_size = 8
    return config
