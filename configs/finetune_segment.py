r"""A segmentation probe: a 1 x 1 convolution on the frozen deep map learns masks of 1, 10 and 100 % of the images. Run:

    python launch.py --config=configs/finetune_segment.py --config.init_from=runs/demo/model --workdir=runs/segment

This takes the masks of the demo's phantoms. For other data with masks in three splits: --config.data.dataset=NAME
--config.data.directory=DATA. GLoRIA (Huang et al., ICCV 2021) and MGCA (Wang et al., NeurIPS 2022) train a U-Net on
their encoders instead and report Dice with the same shares of SIIM's masks; the linear head is that of DINOv2 (Oquab et
al., TMLR 2024). docs/transfer.md says what differs.
"""

from ml_collections import ConfigDict

from configs import finetune_linear


def get_config() -> ConfigDict:
    config = finetune_linear.get_config()
    config.name = "finetune_segment"
    config.transfer.target = "masks"
    config.transfer.cells = 100_000  # the most cells that a share learns from, the same number of each image
    return config
