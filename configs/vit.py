r"""A vision transformer as the image tower: DINOv2's ViT-B/14 at 518 pixels, a grid of 37 x 37. Run:

    python launch.py --config=configs/vit.py --config.data.raw=FOLDER --workdir=runs/vit \
        --config.init_from="('rad-dino/', 'Bio_ClinicalBERT/')"

The builder `pairs` reads FOLDER and stores squares of 518 pixels. `configs/vit.py:vit_base` and the other vision
transformers of configs/afloc.py are chosen in this way. The objective and the optimiser are the published ones. Every
block is trained; `--config.model.image.options.train_last=4` trains the last four, `--config.model.image.freeze=True`
none. Nobody has published this training: numbers of it are ours alone, and there are none yet on real data.
"""

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.models.vision_transformer import VISION_TRANSFORMERS
from configs import afloc

SIDE = {14: 518, 16: 224}  # pixels, by the patch: those that DINOv2 and ViT were trained at last


def get_config(backbone: str = "dinov2_base") -> ConfigDict:
    """The config. Raises UsageError for a backbone that is no vision transformer."""
    if backbone not in VISION_TRANSFORMERS:
        raise UsageError(f"configs/vit.py:{backbone}: there are {', '.join(VISION_TRANSFORMERS)}")
    config = afloc.get_config()
    config.name = backbone
    side = SIDE[VISION_TRANSFORMERS[backbone].structure.patch]
    config.data.builder.image_size = side
    config.model.image.backbone = backbone
    config.model.image.input_size = side
    config.training.remat = "blocks"  # 1,370 tokens an image in twelve blocks would take most of a device's memory
    return config
