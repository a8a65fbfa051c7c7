r"""RadZero's objective: every sentence of a report is a positive of its image, by cosines with single patches. Run:

    python launch.py --config=configs/radzero.py --config.data.raw=FOLDER --workdir=runs/radzero \
        --config.init_from="('rad-dino/', 'all-mpnet-base-v2/')"

Source: RadZero (Park et al., NeurIPS 2025, arXiv 2504.07416) and its public config. The similarity of a sentence and an
image is the cosine of the sentence with the mean of the patches' directions, weighted by a softmax of its cosines with
them (`loss.region_pooling = "similarity"`, sharpness 1 / 0.07). The loss is MP-NCE: each sentence finds its image, and
each image finds each of its sentences among those of other reports, at 1 / 0.07, the mean of both (weight 0.5). Maps
are cosines on a fixed scale, so one threshold serves all prompts: `localization.similarity = "presence"` is a soft step
of them. tests/losses/test_recipes.py has the formulas in plain NumPy.

What differs: a language model rewrites reports as finding-sentences there; here they are the sentences of the cleaned
report, each read alone. Two new transformer layers are trained on a frozen DINOv2 there; here the last two blocks are.
The class token is one more patch there. Its temperature is learned from 0.07 on; ours stays there. Its text tower is
MPNet, of which a BERT takes the place, and a sentence is the mean of its words after the last layer. The contrast is
over the whole batch; it keeps a number for every image and sentence.
"""

from ml_collections import ConfigDict

from configs import vit

TEMPERATURE = 0.07


def get_config() -> ConfigDict:
    config = vit.get_config("dinov2_base")
    config.name = "radzero"
    config.data.sentences = "all"
    config.model.image.options = ConfigDict({"train_last": 2})
    config.model.text.context = "sentence"
    config.model.text.last_layers = 1
    config.model.text.merge_pieces = "mean"
    config.loss.weights = ConfigDict({"report": 0.0, "sentence": 0.5, "word": 0.0})
    config.loss.region_pooling = "similarity"
    config.loss.region_sharpness = 1 / TEMPERATURE
    config.loss.contrast_unit = "unit"
    config.loss.unit_negatives = "both"
    config.loss.contrast_temperature = 1 / TEMPERATURE
    config.optimizer.lr = 1e-4
    config.training.batch_size = 64
    config.training.epochs = 20
    config.training.early_stopping = 5
    config.localization.prompt_level = "sentence"
    config.localization.similarity = "presence"
    return config
