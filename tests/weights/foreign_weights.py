"""Foreign weights for the tests: checkpoints, backbones and BERT folders, small and made by PyTorch's own modules."""

import json
from collections import OrderedDict

import numpy as np
import torch
from reference.torch_resnet import PUBLISHED, TorchImageEncoder, torch_backbone
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", "small", "left", "effusion", "no", "nodule"]


def omegaconf(**model):
    """A config as the family's trainer stores it."""
    from omegaconf import OmegaConf

    text = {"bert_type": "emilyalsentzer/Bio_ClinicalBERT", "last_n_layers": 2, "aggregate_method": "mean"}
    text |= {"norm": False, "embedding_dim": 32, "agg_tokens": True, "freeze_bert": True}
    config = {
        "model": {"norm": False, "vision": {"model_name": "resnet_18", "freeze_cnn": False}, "text": text, **model},
        "data": {"text": {"word_num": 24}, "image": {"imsize": 256}},
        "experiment_name": "published",
        "transforms": {"norm": "half", "random_crop": {"crop_size": 224}},
    }
    return OmegaConf.create(config)


def bert_config(**changed) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertConfig(**{"vocab_size": len(PIECES), "max_position_embeddings": 32, **sizes, **changed})


def tokenizer_folder(folder, pieces=PIECES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def whole_state(backbone="resnet18", shallow=True, seed=0) -> OrderedDict:
    """Both towers with the published names, in PyTorch's own modules."""
    torch.manual_seed(seed)
    encoder = TorchImageEncoder(torch_backbone(backbone), 32)
    state = OrderedDict((f"img_encoder.{name}", value) for name, value in encoder.state_dict().items())
    if not shallow:
        state = OrderedDict((name, value) for name, value in state.items() if "local2_embedder" not in name)
    text = BertModel(bert_config()).state_dict()
    return state | OrderedDict((f"text_encoder.model.{name}", value) for name, value in text.items())


def checkpoint(path, state, prefix="afloc.", config=None, **more):
    contents = {"epoch": 2, "state_dict": OrderedDict((prefix + name, value) for name, value in state.items())}
    contents |= {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4)}}}], "lr_schedulers": [], **more}
    torch.save(contents | {"hyper_parameters": omegaconf() if config is None else config}, path)
    return path


def assert_holds(folder, expected) -> None:
    """The folder's tensors equal these, bit for bit, and there are no others than counters."""
    found = load_file(folder / "model.safetensors")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
        assert found[name].dtype == np.float32
    rest = found.keys() - expected.keys()
    assert all(name.endswith("num_batches_tracked") for name in rest), rest


def backbone_file(path, backbone="resnet18", rename=lambda name: name, head=("fc",), wrap=None):
    torch.manual_seed(1)
    state = OrderedDict((rename(name), value) for name, value in torch_backbone(backbone).state_dict().items())
    for name in head:
        state[rename(f"{name}.weight")] = torch.zeros(10, 512)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrap(state) if wrap else state, path, _use_new_zipfile_serialization=path.suffix != ".pth")
    return path, {f"img_encoder.model.{name}": value for name, value in torch_backbone_state(state, rename).items()}


def torch_backbone_state(state, rename):
    """The state under its own names again, counters and heads left out."""
    names = [n for n in torch_backbone_names(state, rename) if not n.endswith("num_batches_tracked")]
    return {name: state[rename(name)] for name in names}


def torch_backbone_names(state, rename):
    for backbone in PUBLISHED:
        with torch.device("meta"):
            names = list(torch_backbone(backbone).state_dict())
        if all(rename(name) in state for name in names) and len(names) >= len(state) - 3:
            return names
    raise AssertionError("no backbone has these names")


def old_name(name):
    """Layer norms as TensorFlow called them."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def bert_folder(folder, weights="model.safetensors", old=False, prefix="", heads=False, **changed):
    """A Hugging Face folder, and its encoder's state dict."""
    torch.manual_seed(2)
    config = bert_config(**changed)
    tokenizer_folder(folder)
    model = BertForMaskedLM(config)
    encoder = BertModel(config)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    state = OrderedDict((prefix + name, value.clone()) for name, value in encoder.state_dict().items())
    if heads:
        state |= {n: v.clone() for n, v in model.state_dict().items() if n.startswith("cls.")}
        state |= {
            "bert.embeddings.position_ids": torch.arange(32)[None],
            "cls_projection_head.weight": torch.ones(3, 32),
        }
    if old:
        state = OrderedDict((old_name(name), value) for name, value in state.items())
    if weights.endswith(".bin"):
        torch.save(state, folder / weights, _use_new_zipfile_serialization=not old)
    else:
        save_file(state, folder / weights)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    return folder, {f"text_encoder.model.{name}": value for name, value in encoder.state_dict().items()}


def assert_parts(folder, *parts) -> None:
    found = load_file(folder / "model.safetensors")
    for name, value in (item for part in parts for item in part.items()):
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
