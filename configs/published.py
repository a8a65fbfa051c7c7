r"""The training of the published release, choice by choice; docs/training.md has the table that explains them. Run:

    python launch.py --config=configs/published.py --config.data.raw=FOLDER --workdir=runs/published \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')"

The files of ImageNet's ResNet-50 and of Bio_ClinicalBERT are yours to name: without them the towers start at random.
The other optimiser that the release offers, with the betas that it has there:

    python launch.py --config=configs/published.py:adamw ...

Groups, batch statistics and the drawing of sentences are exact. Random numbers are not those of PyTorch and NumPy, and
half precision is bfloat16, not float16.
"""

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from configs import afloc

BETAS = {"adam": (0.5, 0.999), "adamw": (0.9, 0.999)}  # the release names the first; the second are PyTorch's defaults


def get_config(optimizer: str = "adam") -> ConfigDict:
    """The config. Raises UsageError for an optimiser that the release does not offer."""
    if optimizer not in BETAS:
        raise UsageError(f"configs/published.py:{optimizer}: the release offers {', '.join(BETAS)}")
    config = afloc.get_config()
    config.name = "published"
    config.seed = 1

    data = config.data
    data.grey = "cv2"
    data.equalize = "none"  # its option, which its config does not name: "release"
    data.cleaning = "release"
    data.sentences = "release_subset"  # mode 1, which the release trains with; mode 2: "release_impression"
    data.validation_sentences = "sampled"
    data.validation_drop_last = True
    data.max_tokens = 97

    # Two devices, each with half a batch of 128 that was sorted by caption length: for the loss and for batch
    # normalisation.
    config.training.batch_size = 128
    config.loss.contrast_group = 64
    config.loss.contrast_group_order = "length"
    config.loss.twins = "negative"
    config.model.image.statistics_group = 64

    config.optimizer.name = optimizer
    config.optimizer.b1, config.optimizer.b2 = BETAS[optimizer]
    config.optimizer.lr = 2e-5
    config.optimizer.weight_decay = 1e-6
    config.optimizer.clip_norm = 0.25
    config.optimizer.schedule = "exponential"
    config.optimizer.decay = 0.9

    config.training.epochs = 5
    config.training.precision = "bfloat16"
    config.training.keep_best = 5
    config.training.early_stopping = 0  # its config names a patience of 10, which nothing reads
    return config
