"""The published three-level objective as it is, on the phantoms of the demo: a small network, under 15 minutes. Run:

    python launch.py --config=configs/demo_published.py --workdir=runs/demo_published

Losses, groups, drawing of sentences, maps and optimiser are those of configs/published.py. What differs fits a run of
minutes on two CPU cores: the network and its input, batches of one group, three epochs instead of five, a learning
rate for towers that start at random, and float32. configs/demo.py departs from the objective, and docs/results.md has
the numbers of both.
"""

from ml_collections import ConfigDict

from configs import demo, published


def get_config() -> ConfigDict:
    config, small = published.get_config(), demo.get_config()
    config.name = "demo_published"

    config.data.dataset = small.data.dataset
    config.data.builder = small.data.builder
    config.data.max_tokens = small.data.max_tokens

    model = config.model
    model.projection_dim = small.model.projection_dim
    model.image.backbone = small.model.image.backbone
    model.image.input_size = small.model.image.input_size
    # As in ResNet-50 the deep map is that of stage 3, here 14 x 14, and the shallow map that of stage 2.
    options = {**small.model.image.options, "deep_stage": 3}
    del options["top_down"], options["drop_context"], options["position"]
    model.image.options = ConfigDict(options)
    model.text.bert = small.model.text.bert
    model.text.last_layers = small.model.text.last_layers

    # One of the release's two groups of 64 pairs.
    config.training.batch_size = config.loss.contrast_group = config.model.image.statistics_group = 64
    config.training.epochs = 3
    config.training.precision = "float32"
    config.training.keep_best = 1
    config.optimizer.lr = 1e-3

    config.evaluation.datasets = small.evaluation.datasets
    return config
