r"""Fine-tuning: encoder and linear head of a model folder learn from 1, 10 and 100 % of the labels. Run:

    python launch.py --config=configs/finetune_all.py --config.init_from=runs/demo/model --workdir=runs/tuned
    python launch.py --config=configs/finetune_all.py:chexpert --config.init_from=MODEL --workdir=runs/chexpert_tuned

Data, classes and shares are those of configs/finetune_linear.py. GLoRIA (Huang et al., ICCV 2021) trains with Adam and
a learning rate of 1e-4 in batches of 64, for at most 50 epochs, and stops after 10 without a lower validation loss;
`:chexpert` has these numbers, with steps for epochs. docs/transfer.md says what differs.
"""

from ml_collections import ConfigDict

from configs import finetune_linear


def get_config(data: str = "") -> ConfigDict:
    config = finetune_linear.get_config(data)
    config.name = "finetune_all"
    config.encoder = "trained"

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"
    optimizer.lr = 1e-4 if data else 3e-4
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.weight_decay = 1e-6
    optimizer.clip_norm = 0.25
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 0

    config.training = training = ConfigDict()
    training.batch_size = 64 if data else 32
    training.steps = 5000 if data else 150  # the most, for each share
    training.validate_every = 250 if data else 15
    training.early_stopping = 10 if data else 4  # validations without a lower loss; 0: never
    training.log_every = 5
    training.precision = "bfloat16" if data else "float32"
    training.head = "linear_probe"  # linear_probe|zero: where the head starts
    training.augment = True  # light shifts, scales and exposures
    return config
