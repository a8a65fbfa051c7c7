"""A full run on two CPU cores in under ten minutes: the built-in phantoms, a small network, evaluation, report.

    python launch.py --config=configs/demo.py --workdir=runs/demo
    python launch.py --config=configs/demo.py:quick --workdir=runs/quick

The second is to try the commands with: 20 steps, after which the model knows next to nothing.

This config departs from the published objective where docs/results.md measures a gain on this small budget. Every
sentence is read on its own and has to find its own image. Its relevance is a soft maximum over regions of small
receptive field, to which coarser stages are added, starting from zero; and regions know where in the image they lie.
"""

from ml_collections import ConfigDict

from configs import afloc

# Half of the findings are also named alone ("evidence of edema"), so that the name of a class means something.
PHANTOMS = {"train": 4000, "validation": 128, "test": 300, "seed": 0, "named": 0.5}


# A run of 20 steps.
QUICK = {"train": 192, "validation": 32, "test": 12, "seed": 0, "named": 0.5}


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "quick"):
        raise ValueError(f"configs/demo.py:{size}: write demo, or demo:quick for a run of 20 steps")
    phantoms = QUICK if size else PHANTOMS
    config = afloc.get_config()
    config.name = "demo_quick" if size else "demo"

    config.data.dataset = "phantom"
    config.data.builder = ConfigDict(phantoms)
    config.data.sentences = "all"  # a short run sees too few pairs to draw subsets of them
    config.data.max_tokens = 80

    model = config.model
    model.projection_dim = 128
    model.image.backbone = "resnet_small"
    model.image.input_size = 112
    # The deep map has 28 x 28 regions with receptive fields of about 54 of 224 pixels, for small findings. Two coarser
    # stages are added to it, for findings that need a wider view, such as a large heart.
    model.image.options = ConfigDict(
        {
            "blocks": (1, 1, 1, 1),
            "widths": (32, 96, 128, 160),
            "strides": (1, 2, 2, 2),
            "stem_width": 32,
            "stem_kernel": 5,
            "stem_stride": 2,
            "shallow_stage": 2,
            "deep_stage": 2,
            "top_down": True,
            "drop_context": 0.3,
            "position": 7,  # a region of 54 pixels does not see whether it lies to the left or to the right
        }
    )
    model.image.center = True
    model.text.bert = ConfigDict(
        {
            "vocab_size": 400,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_position_embeddings": 96,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    model.text.last_layers = 2
    model.text.context = "sentence"

    config.loss.weights = ConfigDict({"report": 0.1, "sentence": 1.0, "word": 0.0})
    config.loss.region_pooling = "logsumexp"
    config.loss.region_sharpness = 15.0
    config.loss.contrast_unit = "unit"
    config.loss.contrast_temperature = 20.0

    optimizer = config.optimizer
    optimizer.name = "adamw"
    optimizer.lr = 1e-3
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.weight_decay = 1e-4
    optimizer.clip_norm = 1.0
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 50

    training = config.training
    training.batch_size = 32
    training.steps = 750  # what ten minutes on two idle cores allow
    training.precision = "float32"
    training.validate_every = 375
    if size:
        training.steps = training.validate_every = 20
        optimizer.warmup_steps = 5
    training.keep_best = 1
    training.early_stopping = 0

    config.localization.sigma = 0.5
    config.localization.cells = "receptive_field"
    config.localization.prompt_level = "sentence"
    config.localization.similarity = "presence"
    config.localization.presence_threshold = 0.45
    config.localization.presence_growth = 0.08

    unseen = {
        "name": "phantom",
        "directory": config.data.get_ref("directory"),
        "builder": ConfigDict(phantoms),
        "split": "test",
    }
    config.evaluation.datasets = (
        ConfigDict({"title": f"{phantoms['test']} unseen phantoms", **unseen}),
        ConfigDict({"task": "presence", "title": f"Presence in {phantoms['test']} unseen phantoms", **unseen}),
    )
    return config
