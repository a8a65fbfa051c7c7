"""Export as a checkpoint that the published PyTorch code loads with its own loader.

    model.ckpt    a Lightning checkpoint: state_dict under the prefix `afloc.`, hyper_parameters as an OmegaConf config
    bert/         a Hugging Face folder, only for a text encoder of other sizes than Bio_ClinicalBERT: the published
                  code reads it (relative to its working directory) before it loads the checkpoint

The published code supports one kind of network. Settings that it cannot express are refused by name.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import omegaconf
import torch
from safetensors.numpy import save_file

from afloc_jax.errors import UsageError
from afloc_jax.export.source import Source, copy_file, describe
from afloc_jax.export.torch_module import tensors
from afloc_jax.files import Path, write_json
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.levels import LevelName
from afloc_jax.losses.settings import LossSettings
from afloc_jax.models.bert import BertSettings
from afloc_jax.settings import Json
from data_pipelines.tokens import save_tokenizer

PREFIX = "afloc."
# The published code also lists ResNet-18, ResNet-34, ResNeXt and DenseNet, but cannot build or run them.
BACKBONES = {"resnet50": "resnet_50", "resnet152": "resnet_152"}
BIO_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
BIO_CLINICAL_BERT_SETTINGS = BertSettings(vocab_size=28996)
LOCAL_BERT = "bert"


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder.

    Raises UsageError if the published code cannot express this model; the message names every setting.
    """
    foreign = beyond_the_release(source)
    if foreign:
        raise UsageError(f"the published code has no {', no '.join(foreign)}; export with --format torch-module")
    state = {PREFIX + name: tensor for name, tensor in tensors(source).items()}
    checkpoint = {
        "epoch": 0,  # the file is not meant for resuming a run
        "global_step": 0,
        "pytorch-lightning_version": "1.6.0",  # the version of this layout, from which newer ones migrate
        "state_dict": state,
        "hyper_parameters": omegaconf.OmegaConf.create(hyper_parameters(source)),
    }
    torch.save(checkpoint, folder / "model.ckpt")
    if not _is_bio_clinical_bert(source):
        _write_bert(source, folder / LOCAL_BERT)
    (folder / "check").mkdir()
    copy_file("afloc_torch.py", folder / "check")
    write_json(folder / "check" / "config.json", describe(source))


def beyond_the_release(source: Source) -> list[str]:
    """The settings of a model that the published code cannot express, each as `setting = value`."""
    settings, published = source.settings, HeatmapSettings()
    image, text, maps = settings.image, settings.text, source.config.localization
    wanted = {
        "model.image.backbone": (image.backbone, image.backbone if image.backbone in BACKBONES else "resnet50"),
        "model.image.input_size": (image.input_size, 299),
        "model.image.options.channels": (image.structure.plain().get("channels", 3), 3),
        "model.image.mean": (image.mean, (0.5,)),
        "model.image.std": (image.std, (0.5,)),
        "model.image.center": (image.center, False),
        "model.normalize": (settings.normalize, False),  # the published code normalises the text alone
        "model.text.context": (text.context, "report"),
        "model.text.projection": (text.projection, 0),
        "model.text.merge_pieces": (text.merge_pieces, text.merge_layers),  # one setting in the published code
        "model.text.last_layers": (text.last_layers, max(text.last_layers, 2)),  # 1 means the pooled output there
        **{f"localization.{name}": (getattr(maps, name), getattr(published, name)) for name in _map_settings(maps)},
    }
    return [f"{name} = {value!r}" for name, (value, possible) in wanted.items() if value != possible]


def _map_settings(maps: HeatmapSettings) -> list[str]:
    names = [field.name for field in dataclasses.fields(maps)]
    return [name for name in names if maps.similarity == "presence" or not name.startswith("presence_")]


def _trained_with(source: Source) -> LossSettings:
    """The loss settings of the run that made the weights, from its model card; the published ones without them."""
    recipe = source.config.card.get("recipe")
    loss = recipe.get("loss") if isinstance(recipe, Mapping) else None
    return LossSettings.read(loss) if isinstance(loss, Mapping) else LossSettings()


def hyper_parameters(source: Source) -> dict[str, Json]:
    """The config fields that the published builder, model and image transform read."""
    text, bert = source.settings.text, source.settings.text.structure
    loss = _trained_with(source)
    losses: dict[str, Json] = {
        "temp1": loss.attention_temperature,
        "temp2": loss.pooling_temperature,
        "temp3": loss.contrast_temperature,
        "use_ce_loss": False,
    }
    names: dict[LevelName, str] = {"report": "global_report", "sentence": "local_sent", "word": "local_word"}
    for level, name in names.items():
        weight = loss.weights.of(level)
        losses[f"{name}_loss_weight"] = weight
        # The published code creates the shallow projection only with the word level; our state dict always has it.
        losses[f"use_{name}_loss"] = bool(weight) or level == "word"
    return {
        "experiment_name": source.config.name,
        "phase": "pretrain",
        "model": {
            "norm": False,
            "afloc": losses,
            "gloria": losses,
            "vision": {
                "model_name": BACKBONES[source.settings.image.backbone],
                "freeze_cnn": source.settings.image.freeze,
                "pretrained": False,
            },
            "text": {
                "bert_type": BIO_CLINICAL_BERT if _is_bio_clinical_bert(source) else LOCAL_BERT,
                "last_n_layers": text.last_layers,
                "aggregate_method": text.merge_layers,
                "norm": False,
                "embedding_dim": bert.hidden_size,
                "freeze_bert": text.freeze,
                "agg_tokens": True,
                "take_sent_as_units": True,
            },
        },
        "data": {
            "dataset": ["mimic"],
            "text": {"word_num": source.max_tokens, "captions_per_image": 5, "full_report": True},
            "image": {"imsize": source.image_size},
        },
        "transforms": {
            "norm": "half",
            "center_crop": {"crop_size": source.image_size},
            "random_crop": {"crop_size": source.image_size},
        },
        "train": {"batch_size": 128},
    }


def _is_bio_clinical_bert(source: Source) -> bool:
    return source.settings.text.structure == BIO_CLINICAL_BERT_SETTINGS


def _write_bert(source: Source, folder: Path) -> None:
    """The text encoder as a Hugging Face folder."""
    save_tokenizer(source.tokenizer, folder)
    config: dict[str, Json] = {"architectures": ["BertModel"], "model_type": "bert", "pad_token_id": 0}
    write_json(folder / "config.json", config | source.settings.text.structure.plain())
    prefix = "text_encoder.model."
    state = {
        name.removeprefix(prefix): np.ascontiguousarray(array)
        for name, array in source.state_dict().items()
        if name.startswith(prefix)
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
