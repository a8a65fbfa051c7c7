"""The scores of the demo's network if it is trained WITH masks until it stops improving.

    python -m benchmarks.demo_ceiling --out runs/ceiling [--seconds 3600] [--seed 1]

Towers, optimiser, batch size and phantoms are those of configs/demo.py; the objective and the length differ. Every step
draws a finding per image and uses its phrase as the prompt. The presence map, a soft step of the cosine with a learned
slope and middle, is fitted to the mask, averaged over each region, by cross entropy and soft Dice.

Every `EVERY` steps the loss on validation phantoms is computed. After `PATIENCE` times without a lower one, training
goes back to the best weights with a third of the learning rate; after `CUTS` such cuts it ends. The best weights are
saved as a model folder, with slope and middle, and scored by the evaluation of the demo. supervised.json says whether
training ended in this way (`stopped_improving`) or by `--seconds`. `benchmarks.demo_table` calls the result a ceiling
only if it did, and if no class of the model is better. The same command goes on where the last one was stopped, at the
last validation; `--seconds` counts those of all.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from afloc_jax.evaluation.report.numbers import part_of
from afloc_jax.evaluation.run import evaluate_dataset
from afloc_jax.files import write_whole
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.training.allocation import keep_freed_memory
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

EVERY, PATIENCE, CUTS = 50, 4, 2
FILE, STATE = "supervised.json", "state.msgpack"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--directory", default="data", help="where prepared phantoms lie")
    parser.add_argument("--seconds", type=float, default=3600.0, help="most seconds of training, compilation included")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    arguments.out.mkdir(parents=True, exist_ok=True)

    given = demo.get_config()
    given.data.directory, given.seed = arguments.directory, arguments.seed
    config = RunConfig.from_config(given)
    (entry,) = (entry for entry in config.evaluation.entries if entry.task.name == "localization")
    source = open_source("phantom", arguments.directory, "train", builder=config.data.builder)
    tokenizer = training_tokenizer(source, vocabulary_size=config.model.text.structure.vocab_size)
    config = with_vocabulary(config, tokenizer)
    model = build(config.model)
    images, prompts, masks, grid = _annotated(source, model, config.data.max_tokens, tokenizer)
    unseen = open_source("phantom", arguments.directory, "validation", builder=config.data.builder)
    held_out = _every_finding(*_annotated(unseen, model, config.data.max_tokens, tokenizer)[:3])

    batch_size = config.training.batch_size
    first = _batch(images, prompts, masks, np.arange(batch_size), np.random.default_rng(arguments.seed))
    variables = jax.jit(model.init)(jax.random.key(arguments.seed), first[0], first[1])
    localization = config.localization
    step_of_cosine = {"sharpness": localization.presence_sharpness, "threshold": localization.presence_threshold}
    params = {"model": variables["params"], **jax.tree.map(jnp.float32, step_of_cosine)}
    optimizer = build_optimizer(config.optimizer)
    peak = build_schedule(config.optimizer, len(source) // batch_size, given.training.steps)
    highest = max(float(peak(jnp.asarray(number))) for number in range(given.training.steps))

    def loss_of(params, batch_stats, number, image, tokens, target, *, train=True):
        variables = {"params": params["model"], "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.fold_in(jax.random.key(arguments.seed), number)}
        if train:
            applied = model.apply(variables, image, tokens, train=True, mutable=["batch_stats"], rngs=rngs)
            (levels, text), updates = applied
        else:
            (levels, text), updates = model.apply(variables, image, tokens), variables
        cosine = jnp.einsum("bhwd,bd->bhw", unit_norm(levels.deep), unit_norm(text.sentences[:, 1]))
        logits = params["sharpness"] * (cosine - params["threshold"])
        found = jax.nn.sigmoid(logits)
        overlap = 2 * (found * target).sum((1, 2)) + 1
        dice = 1 - overlap / (found.sum((1, 2)) + target.sum((1, 2)) + 1)
        return 5 * optax.sigmoid_binary_cross_entropy(logits, target).mean() + dice.mean(), updates["batch_stats"]

    @jax.jit
    def held_out_loss(params, batch_stats, *batch):
        return loss_of(params, batch_stats, 0, *batch, train=False)[0]

    @jax.jit
    def step(number, rate, params, batch_stats, state, *batch):
        (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, batch_stats, number, *batch)
        update, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda leaf, change: leaf - rate * change, params, update)
        return params, batch_stats, state, loss

    now = params, variables["batch_stats"], optimizer.init(params)
    run: dict[str, Any] = {
        "now": now,
        "best": now,
        "lowest": float("inf"),
        "waited": 0,
        "cuts": 0,
        "steps": 0,
        "seconds": 0.0,
    }
    kept = arguments.out / STATE
    if kept.exists():
        run = flax.serialization.from_bytes(run, kept.read_bytes())
        print(f"goes on after step {run['steps']} and {run['seconds']:.0f} s", flush=True)
    before, start = run["seconds"], time.perf_counter()
    while run["cuts"] <= CUTS and run["seconds"] < arguments.seconds:
        for number in range(run["steps"], run["steps"] + EVERY):
            rng = np.random.default_rng((arguments.seed, number))
            rows = rng.integers(len(images), size=batch_size)
            rate = highest * min(1.0, (number + 1) / EVERY) / 3 ** run["cuts"]
            *run["now"], loss = step(number, rate, *run["now"], *_batch(images, prompts, masks, rows, rng))
        run["steps"] += EVERY
        found = float(np.mean([held_out_loss(*run["now"][:2], *batch) for batch in held_out]))
        run["seconds"] = before + time.perf_counter() - start
        print(
            f"step {run['steps']}: loss {float(loss):.3f}, validation {found:.4f}, {run['seconds']:.0f} s", flush=True
        )
        run["waited"] += 1
        if found < run["lowest"]:
            run |= {"best": run["now"], "lowest": found, "waited": 0}
        if run["waited"] == PATIENCE:
            run |= {"now": run["best"], "waited": 0, "cuts": run["cuts"] + 1}
        write_whole(kept, flax.serialization.to_bytes(run))
    params, batch_stats, _ = run["best"]

    # The map is the one that was fitted.
    sharpness, threshold = float(params["sharpness"]), float(params["threshold"])
    localization = dataclasses.replace(
        localization, presence_growth=0.0, presence_sharpness=sharpness, presence_threshold=threshold
    )
    config = dataclasses.replace(config, localization=localization)
    save_model(arguments.out / "model", {"params": params["model"], "batch_stats": batch_stats}, config, tokenizer)
    summary = evaluate_dataset(arguments.out / "model", arguments.out / "evaluation", entry.task, entry.settings)
    metrics = part_of(summary, "metrics")
    scores = {name: part_of(metrics, name, "overall")["mean"] for name in metrics}
    about = {
        "stopped_improving": run["cuts"] > CUTS,
        "steps": run["steps"],
        "seconds": run["seconds"],
        "validation_loss": None if np.isinf(run["lowest"]) else run["lowest"],
    }
    (arguments.out / FILE).write_text(json.dumps(about) + "\n")
    print(json.dumps({**about, "grid": grid, **scores}))


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


def _every_finding(images, prompts, masks, size=128):
    """All findings with their images, in batches of `size`; the last ones, which fill no batch, are left out."""
    pairs = [(row, k) for row, of_image in enumerate(masks) for k in range(len(of_image))]
    batches = []
    for first in range(0, len(pairs) - size + 1, size):
        rows, chosen = zip(*pairs[first : first + size], strict=True)
        batches.append(_chosen(images, prompts, masks, np.array(rows), chosen))
    return batches


def _batch(images, prompts, masks, rows, rng):
    return _chosen(images, prompts, masks, rows, [int(rng.integers(len(masks[row]))) for row in rows])


def _chosen(images, prompts, masks, rows, chosen):
    tokens = {
        key: jnp.asarray(np.stack([prompts[row][key][k] for row, k in zip(rows, chosen, strict=True)]))
        for key in prompts[0]
    }
    target = np.stack([masks[row][k] for row, k in zip(rows, chosen, strict=True)])
    return images[rows], TokenBatch(**tokens), target


if __name__ == "__main__":
    main()
