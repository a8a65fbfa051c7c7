"""A small model folder, and the commands that read it."""

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.hostile import valid_files as valid

TEXTS = ("small left effusion", "no nodule. small effusions")
LOCALIZE = ("localize", "IN/model", "IN/grey.png", "--out", "OUT")
PROMPT = ("--prompt", "small left effusion")


@functools.cache
def model_files() -> Mapping[str, bytes]:
    """The files of a model folder with random weights, by name."""
    from afloc_jax.inference.towers import initial_variables
    from afloc_jax.training.settings import RunConfig
    from afloc_jax.weights.folder import save_model
    from configs.afloc import get_config
    from data_pipelines.tokens import learn_tokenizer

    config, tokenizer = get_config(), learn_tokenizer(TEXTS, 100)
    config.data.max_tokens = 16
    config.model.projection_dim = 16
    config.model.image.update({"backbone": "resnet_small", "input_size": 32})
    config.model.image.options.update({"widths": (8, 8, 8), "stem_width": 8})
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config.model.text.last_layers = 1
    config.model.text.bert.update({**bert, "vocab_size": tokenizer.get_vocab_size()})
    run = RunConfig.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        save_model(f"{folder}/model", initial_variables(run.model, seed=1), run, tokenizer)
        return {path.name: path.read_bytes() for path in Path(folder, "model").iterdir()}


def model_folder(folder: Path, sealed: bool = True) -> None:
    """Writes a small model folder, with its seal or without."""
    folder.mkdir()
    for name, content in model_files().items():
        if sealed or name != "seal.json":
            (folder / name).write_bytes(content)


def model_and_picture(folder: Path) -> None:
    model_folder(folder / "model")
    (folder / "grey.png").write_bytes(valid.picture(valid.radiograph()))


def unsealed(folder: Path) -> None:
    model_and_picture(folder)
    (folder / "model/seal.json").unlink()


def heat_map_of(out: Path, _: str) -> object:
    """The heat maps that were written, and the boxes."""
    content = json.loads((out / "localize.json").read_text())
    prompts = [one["prompts"] for one in content["images"]]
    return json.dumps(prompts), [path.read_bytes() for path in sorted(out.glob("*.npy"))]
