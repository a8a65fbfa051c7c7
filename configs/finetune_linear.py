r"""A linear probe: logistic regression on the frozen encoder of a model, with 1, 10 and 100 % of the labels. Run:

    python launch.py --config=configs/finetune_linear.py --config.init_from=runs/demo/model --workdir=runs/linear
    python launch.py --config=configs/finetune_linear.py:chexpert --config.init_from=MODEL --workdir=runs/chexpert

The first takes the phantoms of the demo. The second takes records of `afloc prepare chexpert` and the protocol of
GLoRIA (Huang et al., ICCV 2021): the five classes of the CheXpert competition, uncertain labels as its code maps them,
empty ones absent, and the mean AUC on test images. For other labelled data: --config.data.dataset=NAME
--config.data.directory=DATA. docs/transfer.md says what differs from GLoRIA.
"""

from ml_collections import ConfigDict, FieldReference

from configs import demo

COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")


def get_config(data: str = "") -> ConfigDict:
    if data not in ("", "chexpert"):
        raise ValueError(f"configs/finetune_linear.py:{data}: write finetune_linear, or finetune_linear:chexpert")
    config = ConfigDict()
    config.name = "finetune_linear"  # title in the report
    config.seed = 1
    config.init_from = ""  # the model folder
    config.encoder = "frozen"

    config.data = ConfigDict()
    config.data.dataset = data or "phantom"  # builder in data_pipelines/builders
    config.data.directory = "data"  # folder of prepared records
    config.data.cache = ""  # folder of this machine to which records are copied once if `directory` is in a bucket
    config.data.raw = ""  # folder of raw files, to prepare missing records
    config.data.builder = ConfigDict({} if data else demo.PHANTOMS)
    config.data.train_split = "train"
    config.data.validation_split = "validation"  # chooses the strength of L2
    config.data.test_split = "test"

    config.transfer = transfer = ConfigDict()
    transfer.classes = COMPETITION if data else ()  # empty: all that can be learned and scored
    transfer.labels = FieldReference(None, field_type=str)  # CSV: column id and one per class; None: of the records
    transfer.unlisted = "absent" if data else "unknown"  # unknown|absent: labels that a record does not list
    transfer.uncertain = "chexpert" if data else "unknown"  # unknown|chexpert (present or absent, by class)
    transfer.framing = FieldReference(None, field_type=str)  # pad|crop; None: pad
    transfer.fractions = (0.01, 0.1, 1.0)  # shares of the patients; smaller subsets lie within larger ones
    transfer.subset_seed = 0
    transfer.bootstrap = 1000  # resamples of the intervals
    return config
