"""The scores of the demo's network if it is trained WITH masks: a ceiling for annotation-free training.

    python -m benchmarks.demo_ceiling --out runs/ceiling [--seconds 600] [--seed 1]

Towers, optimiser, batch size and phantoms are those of configs/demo.py, for at most the same time; only the objective
differs. Every step draws a finding per image and uses its phrase as the prompt. The presence map, a soft step of the
cosine with a learned slope and middle, is fitted to the mask, averaged over each region, by cross entropy and soft
Dice. The result is saved as a model folder, with slope and middle, and is scored by the evaluation of the demo.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afloc_jax.evaluation.report.numbers import part_of
from afloc_jax.evaluation.run import evaluate_dataset
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.training.optimizer import build_optimizer, build_schedule
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.start import with_vocabulary
from afloc_jax.vectors import unit_norm
from afloc_jax.weights.folder import save_model
from configs import demo
from data_pipelines.batches import training_tokenizer
from data_pipelines.prepared import open_source
from data_pipelines.reports import clean_prompt
from data_pipelines.tokens import tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--directory", default="data", help="where prepared phantoms lie")
    parser.add_argument("--seconds", type=float, default=600.0, help="most seconds of training, compilation included")
    parser.add_argument("--steps", type=int, default=demo.get_config().training.steps)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    given = demo.get_config()
    given.data.directory, given.seed, given.training.steps = arguments.directory, arguments.seed, arguments.steps
    config = RunConfig.from_config(given)
    source = open_source("phantom", arguments.directory, "train", builder=config.data.builder)
    tokenizer = training_tokenizer(source, vocabulary_size=config.model.text.structure.vocab_size)
    config = with_vocabulary(config, tokenizer)
    model = build(config.model)
    images, prompts, masks, grid = _annotated(source, model, config.data.max_tokens, tokenizer)

    rng = np.random.default_rng(arguments.seed)
    batch_size = config.training.batch_size
    first = _batch(images, prompts, masks, rng.integers(len(images), size=batch_size), rng)
    variables = jax.jit(model.init)(jax.random.key(arguments.seed), first[0], first[1])
    localization = config.localization
    step_of_cosine = {"sharpness": localization.presence_sharpness, "threshold": localization.presence_threshold}
    params = {"model": variables["params"], **jax.tree.map(jnp.float32, step_of_cosine)}
    optimizer = build_optimizer(config.optimizer)
    schedule = build_schedule(config.optimizer, len(source) // batch_size, arguments.steps)

    def loss_of(params, batch_stats, number, image, tokens, target):
        variables = {"params": params["model"], "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.fold_in(jax.random.key(arguments.seed), number)}
        (levels, text), updates = model.apply(variables, image, tokens, train=True, mutable=["batch_stats"], rngs=rngs)
        cosine = jnp.einsum("bhwd,bd->bhw", unit_norm(levels.deep), unit_norm(text.sentences[:, 1]))
        logits = params["sharpness"] * (cosine - params["threshold"])
        found = jax.nn.sigmoid(logits)
        overlap = 2 * (found * target).sum((1, 2)) + 1
        dice = 1 - overlap / (found.sum((1, 2)) + target.sum((1, 2)) + 1)
        return 5 * optax.sigmoid_binary_cross_entropy(logits, target).mean() + dice.mean(), updates["batch_stats"]

    @jax.jit
    def step(number, params, batch_stats, state, *batch):
        (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, batch_stats, number, *batch)
        update, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda leaf, change: leaf - schedule(number) * change, params, update)
        return params, batch_stats, state, loss

    batch_stats, state = variables["batch_stats"], optimizer.init(params)
    start = time.perf_counter()
    for number in range(arguments.steps):
        rows = rng.integers(len(images), size=batch_size)
        params, batch_stats, state, loss = step(
            number, params, batch_stats, state, *_batch(images, prompts, masks, rows, rng)
        )
        if number % 50 == 0:
            print(f"step {number}: loss {float(loss):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        if time.perf_counter() - start > arguments.seconds:
            break
    seconds = time.perf_counter() - start

    # The map is the one that was fitted.
    sharpness, threshold = float(params["sharpness"]), float(params["threshold"])
    localization = dataclasses.replace(
        localization, presence_growth=0.0, presence_sharpness=sharpness, presence_threshold=threshold
    )
    config = dataclasses.replace(config, localization=localization)
    save_model(arguments.out / "model", {"params": params["model"], "batch_stats": batch_stats}, config, tokenizer)
    (entry,) = config.evaluation.entries
    summary = evaluate_dataset(arguments.out / "model", arguments.out / "evaluation", entry.task, entry.settings)
    metrics = part_of(summary, "metrics")
    scores = {name: part_of(metrics, name, "overall")["mean"] for name in metrics}
    print(json.dumps({"steps": number + 1, "seconds": seconds, "grid": grid, **scores}))


def _annotated(source, model, max_tokens, tokenizer):
    """The images with a finding, the tokens of their phrases, and their masks averaged over each region."""
    records = [record for record in (source[i] for i in range(len(source))) if record.findings]
    images = np.stack([record.image for record in records])
    slots, count = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    like = TokenBatch(slots, slots, slots, count, count)
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), images[:1], like)[0]
    grid = shapes[0].deep.shape[1]
    cell = images.shape[1] // grid
    prompts, masks = [], []
    for record in records:
        texts = [clean_prompt(finding.prompt) for finding in record.findings]
        prompts.append(tokenize(tokenizer, texts, max_tokens))
        squares = np.stack([np.asarray(finding.mask, np.float32) for finding in record.findings])
        masks.append(squares.reshape(-1, grid, cell, grid, cell).mean((2, 4)))
    return images, prompts, masks, grid


def _batch(images, prompts, masks, rows, rng):
    chosen = [int(rng.integers(len(masks[row]))) for row in rows]
    tokens = {
        key: jnp.asarray(np.stack([prompts[row][key][k] for row, k in zip(rows, chosen, strict=True)]))
        for key in prompts[0]
    }
    target = np.stack([masks[row][k] for row, k in zip(rows, chosen, strict=True)])
    return images[rows], TokenBatch(**tokens), target


if __name__ == "__main__":
    main()
