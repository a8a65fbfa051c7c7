r"""The sigmoid loss at all three levels, exact over the whole batch in one pass around the ring of devices. Run:

    python launch.py --config=configs/siglip.py --config.data.raw=FOLDER --workdir=runs/siglip \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')"

Source of the loss: SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343): one decision for every pair, with a temperature
and a bias that are learned from 10 and -10 on. What differs from it: there is one image vector and one text vector
there, and here a temperature and a bias for each of the three levels of configs/afloc.py. At the word and sentence
level the relevance of a caption is the logarithm of the mean over its units, not of the sum, so that it is a number
between -1 and 1 as a cosine is (`losses.definition.mean_relevance`). Network, data and optimiser are those of
configs/afloc.py. Its learning rate of 2e-5 moves temperature and bias by as much a step; SigLIP's own was 1e-3, with
weights that started at random. Nobody has published this training: numbers of it are ours alone.
"""

from ml_collections import ConfigDict

from configs import afloc


def get_config() -> ConfigDict:
    config = afloc.get_config()
    config.name = "siglip"
    config.loss.objective = "sigmoid"
    config.loss.contrast_temperature = 10.0
    config.loss.sigmoid_bias = -10.0
    return config
