"""Training steps from the weights and inputs of the goldens, at most six, in float64; prints them as JSON.

python -m tests.training.golden_steps ../shared/goldens 6

A program of its own, for a test to start: with the eight devices of the other tests, XLA runs eight threads that wait
by spinning, and where something else wants the cores too these steps take ten times as long.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from afloc_jax.models import build, trainable
from afloc_jax.training.mesh import build_mesh, place_batch, place_state
from afloc_jax.training.optimizer import build_optimizer, build_schedule, freeze
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import build_train_step, new_state
from afloc_jax.weights import torch_names
from configs.afloc import get_config
from data_pipelines.tokens import load_tokenizer, tokenize


def _setup(goldens):
    facts = json.loads((goldens / "model.json").read_text())
    arrays = np.load(goldens / "model.npz")
    config = get_config()
    config.seed = facts["seed"]
    config.model.projection_dim = 64
    config.model.text.bert.update(json.loads((goldens / "bert/config.json").read_text()))
    config.optimizer.update(
        lr=facts["lr"],
        b1=facts["betas"][0],
        b2=facts["betas"][1],
        weight_decay=facts["weight_decay"],
        clip_norm=facts["clip_norm"],
        schedule="exponential",
        decay=facts["lr_after_step_2"] / facts["lr"],
    )
    return facts, arrays, RunConfig.from_config(config)


def _filled(goldens, config):
    sys.path.insert(0, str(goldens))
    try:
        from fill import fill
    finally:
        sys.path.remove(str(goldens))
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())
    state = {name: fill(name, shape) for name, shape in shapes.items()}
    variables = torch_names.from_torch(state, config.model)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)


def steps(count, goldens, facts, arrays, config):
    """[count, 5] loss, report, sentence, word and gradient norm; the first 8 numbers of every parameter afterwards."""
    model = build(config.model, dtype=jnp.float64)
    variables = _filled(goldens, config)
    mesh = build_mesh(jax.devices()[:1])
    optimizer = freeze(build_optimizer(config.optimizer), trainable(variables["params"], config.model))
    schedule = build_schedule(config.optimizer, steps_per_epoch=3, total_steps=6)
    step = build_train_step(model, config, optimizer, schedule, mesh)
    state = place_state(new_state(variables, optimizer), mesh)
    tokens = tokenize(load_tokenizer(goldens / "bert"), facts["reports"], facts["word_num"], compatible=True)

    images = arrays["images"].astype(np.float64)
    rows = []
    for number in range(count):
        noise = np.random.default_rng(facts["seed"] * 100 + number).standard_normal((len(images), 1, 224, 224))
        state, metrics = step(state, place_batch({"image": images + 0.05 * noise[:, 0], **tokens}, mesh))
        rows.append(
            [metrics.named()[key] for key in ("loss", "loss/report", "loss/sentence", "loss/word", "grad_norm")]
        )
    final = torch_names.to_torch({"params": state.params, "batch_stats": state.batch_stats}, config.model)
    return np.array(rows), {name: np.asarray(value).flatten()[:8] for name, value in final.items()}


def main(goldens: Path, count: int) -> None:
    with jax.enable_x64(True):
        trajectory, parameters = steps(count, goldens, *_setup(goldens))
    print(json.dumps({"trajectory": trajectory.tolist(), "parameters": {k: v.tolist() for k, v in parameters.items()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
