"""The config of an earlier run, from its config.json. Run:

python launch.py --config=configs/resolved.py:runs/demo/config.json --workdir=runs/again
"""

import json

from ml_collections import ConfigDict

from afloc_jax.files import bucket_path


def get_config(path: str = "") -> ConfigDict:
    """The config with the values of the JSON file at `path`. Dicts inside lists become ConfigDicts as well."""
    if not path:
        raise ValueError("configs/resolved.py needs a file: --config=configs/resolved.py:runs/demo/config.json")

    def convert(value):
        if isinstance(value, dict):
            section = ConfigDict()
            for key, item in value.items():
                section[key] = convert(item)
            return section
        return tuple(convert(item) for item in value) if isinstance(value, list) else value

    return convert(json.loads(bucket_path(path).read_text()))
