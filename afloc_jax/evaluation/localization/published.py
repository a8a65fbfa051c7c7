"""Published localisation scores, shown beside our own. They are means with the printed digits.

Source: AFLoc (doi 10.1038/s41551-025-01574-7), which also evaluated the other systems, by protocol "afloc". The row of
the released weights is an independent evaluation of them on MS-CXR.
"""

import re
from collections.abc import Mapping

METRICS = ("iou", "dice", "cnr")
_TABLE: dict[str, dict[str, tuple[float, float, float]]] = {
    "RSNA": {
        "GLoRIA": (0.279, 0.412, 1.225),
        "BioViL": (0.296, 0.434, 1.303),
        "MedKLIP": (0.318, 0.466, 1.036),
        "AFLoc": (0.343, 0.485, 1.540),
    },
    "MS-CXR": {
        "GLoRIA": (0.269, 0.393, 1.289),
        "BioViL": (0.228, 0.343, 1.084),
        "MedKLIP": (0.264, 0.395, 1.045),
        "AFLoc": (0.325, 0.462, 1.638),
        "AFLoc, released weights": (0.323, 0.461, 1.631),
    },
    "COVID Rural": {
        "GLoRIA": (0.139, 0.224, 0.664),
        "BioViL": (0.192, 0.299, 0.976),
        "MedKLIP": (0.174, 0.283, 0.840),
        "AFLoc": (0.211, 0.323, 1.063),
    },
    "Fundus": {
        "GLoRIA": (0.109, 0.175, 0.455),
        "ConVIRT": (0.110, 0.178, 0.423),
        "AFLoc": (0.189, 0.282, 0.917),
    },
}
# Names of data sets and builders, reduced to letters and digits. A title may continue ("MS-CXR phrases").
_ALIASES = {"rsna": "RSNA", "mscxr": "MS-CXR", "covidrural": "COVID Rural", "fundus": "Fundus", "idrid": "Fundus"}


def published_scores(*names: str) -> tuple[str, Mapping[str, Mapping[str, float]]]:
    """The data set of one of `names` (a builder, a title), and {system: {metric: mean}}; "" and {} if there is none."""
    for name in names:
        folded = re.sub(r"[^a-z0-9]", "", name.lower())
        for alias, data_set in _ALIASES.items():
            if folded.startswith(alias):
                rows = _TABLE[data_set].items()
                return data_set, {s: dict(zip(METRICS, v, strict=True)) for s, v in rows}
    return "", {}
