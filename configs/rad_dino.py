r"""AFLoc's losses on a frozen RAD-DINO: the control experiment of KAF-Ground (2026), from its ablation. Run:

    python launch.py --config=configs/rad_dino.py --config.data.raw=FOLDER --workdir=runs/rad_dino \
        --config.init_from="('microsoft/rad-dino', 'emilyalsentzer/Bio_ClinicalBERT')" --config.data.features=FEATURES

FEATURES is a folder of this machine, in which the features of the frozen tower are computed once (docs/training.md has
its cost). Without it they are computed in every step, and every device computes the tower.

As stated there: RAD-DINO, a ViT-B/14 at 518 x 518 pixels with 37 x 37 patches, is frozen; BERT and all projections are
trained by the three losses of AFLoc; Adam at 2e-5, lowered in steps. It reports 0.335 mean IoU and 0.824 pointing on
MS-CXR, where the release has 0.323 and 0.784.

What differs, or is not stated there and taken from configs/published.py: the batch of 128 in groups of 64, the factor
of the decay, the epochs, Bio_ClinicalBERT, how sentences are drawn. The shallow map is that of the sixth of twelve
blocks, which is ours. Images are padded to the square, where RAD-DINO's own processor cuts out the middle. Nobody has
run this config at full size: there are no numbers of it.
"""

from ml_collections import ConfigDict

from configs import published

SIDE = 518  # pixels


def get_config() -> ConfigDict:
    """The training of the release with a frozen DINOv2 ViT-B/14 as the image tower."""
    config = published.get_config()
    config.name = "rad_dino"
    config.data.builder.image_size = SIDE
    image = config.model.image
    image.backbone, image.input_size, image.freeze = "dinov2_base", SIDE, True
    image.options.shallow_block = 6
    image.statistics_group = 0  # the tower has no batch statistics
    return config
