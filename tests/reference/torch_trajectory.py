"""The published training steps in PyTorch, from the goldens' weights, or from weights changed in their last digit.

Why: at the fourth step one unit lies so close to the kink of its ReLU that rounding decides on which side. Weights that
differ by a few units in the last place (relative 1e-15) follow the recorded trajectory (seeds 1 to 4) or leave it
(seed 0), always for the same second one. test_golden_trajectory.py accepts both. The second is in
tests/training/second_trajectory.json, written by

    python -m tests.reference.torch_trajectory ../shared/goldens 1e-15 0 > tests/training/second_trajectory.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from data_pipelines.tokens import load_tokenizer, tokenize
from tests.reference.torch_losses import cross_entropies, local_similarities, report_similarities
from tests.reference.torch_resnet import TorchResNet

TEMPERATURES = (4.0, 5.0, 10.0)


def towers(goldens: Path, change: float, seed: int) -> nn.ModuleDict:
    """Both towers with the weights of fill.py, each times 1 + change * N(0, 1)."""
    sys.path.insert(0, str(goldens))
    from fill import fill

    model = nn.ModuleDict({"img_encoder": nn.Module(), "text_encoder": nn.Module()})
    model["img_encoder"].model = TorchResNet((3, 4, 6, 3), bottleneck=True)
    model["img_encoder"].local2_embedder = nn.Conv2d(512, 64, 1, bias=False)
    model["img_encoder"].local_embedder = nn.Conv2d(1024, 64, 1, bias=False)
    model["img_encoder"].global_embedder = nn.Linear(2048, 64)
    model["text_encoder"].model = BertModel(BertConfig(**json.loads((goldens / "bert/config.json").read_text())))
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())
    state = {name: torch.tensor(fill(name, shape)) for name, shape in shapes.items()}
    rng = np.random.default_rng(seed)
    for name, value in state.items():
        if value.is_floating_point():
            factor = 1 + change * rng.standard_normal(tuple(value.shape)) if change else np.float64(1)
            state[name] = value.double() * torch.tensor(factor)
    model.double().load_state_dict(state)
    return model.train()


def text_units(bert: BertModel, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Words [B, L, D], sentences [B, L, D] and report [B, D]: sums of pieces, means of words, mean of all slots."""
    used = (tokens["word_ids"] >= 0).long()
    states = bert(tokens["token_ids"], attention_mask=used, output_hidden_states=True).hidden_states[-4:]
    pieces = torch.stack(states).sum(0) * used[..., None]
    rows = torch.arange(len(pieces), device=pieces.device)[:, None].expand(pieces.shape[:2])

    def summed(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values).index_put((rows, ids.clamp(min=0)), values, accumulate=True)

    words = summed(pieces, tokens["word_ids"])
    member = (tokens["sentence_ids"] >= 0).to(words.dtype)
    counts = summed(member, tokens["sentence_ids"])
    sentences = summed(words * member[..., None], tokens["sentence_ids"]) / counts.clamp(min=1)[..., None]
    return words, sentences, words.mean(1)


def losses(model: nn.ModuleDict, images: torch.Tensor, tokens: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Report, sentence and word loss of images [B, 224, 224] in [-1, 1]."""
    images = nn.functional.interpolate(
        images[:, None].repeat(1, 3, 1, 1), (299, 299), mode="bilinear", align_corners=True
    )
    _, shallow, deep, last = model["img_encoder"].model(images)
    shallow = model["img_encoder"].local2_embedder(shallow).flatten(2).transpose(1, 2)
    deep = model["img_encoder"].local_embedder(deep).flatten(2).transpose(1, 2)
    whole = model["img_encoder"].global_embedder(last.mean((2, 3)))
    words, sentences, report = text_units(model["text_encoder"].model, tokens)
    return [
        sum(cross_entropies(report_similarities(whole, report, TEMPERATURES[2]))),
        sum(cross_entropies(local_similarities(deep, sentences, tokens["sentence_count"], TEMPERATURES))),
        sum(cross_entropies(local_similarities(shallow, words, tokens["word_count"], TEMPERATURES))),
    ]


def run(goldens: Path, change: float, seed: int) -> dict:
    """Six steps: [loss, report, sentence, word, gradient norm] of each, and a few numbers of parameters afterwards."""
    facts, arrays = json.loads((goldens / "model.json").read_text()), np.load(goldens / "model.npz")
    model = towers(goldens, change, seed)
    batch = tokenize(load_tokenizer(goldens / "bert"), facts["reports"], facts["word_num"], compatible=True)
    tokens = {name: torch.tensor(value).long() for name, value in batch.items()}
    images = arrays["images"].astype(np.float64)
    decay, betas = facts["weight_decay"], tuple(facts["betas"])
    optimizer = torch.optim.Adam(model.parameters(), lr=facts["lr"], betas=betas, weight_decay=decay)
    trajectory = []
    for step in range(6):
        optimizer.param_groups[0]["lr"] = facts["lr"] if step < 3 else facts["lr_after_step_2"]
        noise = np.random.default_rng(facts["seed"] * 100 + step).standard_normal((len(images), 1, 224, 224))
        parts = losses(model, torch.tensor(images + 0.05 * noise[:, 0]), tokens)
        optimizer.zero_grad()
        sum(parts).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), facts["clip_norm"])
        optimizer.step()
        trajectory.append([float(value.detach()) for value in (sum(parts), *parts, norm)])
    final = {key.removeprefix("train/param/") for key in arrays.files if key.startswith("train/param/")}
    state = model.state_dict()
    return {
        "trajectory": trajectory,
        "parameters": {name: state[name].flatten()[:8].tolist() for name in sorted(final)},
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])), indent=1))
