r"""GLoRIA's objective: words against regions of one map, and reports against images. Run:

    python launch.py --config=configs/gloria.py --config.data.raw=FOLDER --workdir=runs/gloria \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')"

Source: GLoRIA (Huang et al., ICCV 2021), with the word-region attention of DAMSM (AttnGAN, CVPR 2018, equations 7 to
12): a softmax over words, one over regions (temperature 4), the cosine of each word with its regions, a log-sum-exp of
words (5), and cross entropies both ways (10), to which the same loss of the two whole vectors is added, with equal
weights. It is the word level of configs/afloc.py on the map of 19 x 19 regions that the sentence level has there;
tests/losses/test_recipes.py has both formulas in plain NumPy. Adam at 5e-5, batches of 48, clipping and the plateau
schedule are those of its public config.

What differs: images are padded to a square of 224 pixels, not cropped from 256 at random. A caption is a random subset
of a report's sentences, where theirs is a report or one of its sentences. It was trained on CheXpert, whose reports are
not public. The contrast is over the whole batch on any number of devices.
"""

from ml_collections import ConfigDict

from configs import afloc


def get_config() -> ConfigDict:
    config = afloc.get_config()
    config.name = "gloria"
    config.loss.weights = ConfigDict({"report": 1.0, "sentence": 0.0, "word": 1.0})
    config.loss.word_map = "deep"
    config.loss.attention_temperature = 4.0
    config.loss.pooling_temperature = 5.0
    config.loss.contrast_temperature = 10.0
    config.optimizer.lr = 5e-5
    config.optimizer.b1 = 0.5
    config.optimizer.schedule = "plateau"
    config.optimizer.decay = 0.5
    config.training.batch_size = 48
    config.training.epochs = 50
    config.training.early_stopping = 10
    return config
