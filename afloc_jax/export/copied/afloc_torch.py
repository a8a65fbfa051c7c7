"""AFLoc in one file of plain PyTorch: image and text at three levels, and the heat map of a prompt in an image.

Written by afloc_jax (`afloc export MODEL DEST --format torch-module`); config.json and weights.pt lie beside it.

    import afloc_torch, afloc_inputs
    model = afloc_torch.load("the/folder/of/this/file")
    inputs = afloc_inputs.read("the/folder/of/this/file", ["chest.png"], ["small left pleural effusion"])
    levels = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    levels.heatmap  # [1, 224, 224], of the zero-padded square

State dict names are those of the published PyTorch release. Maps are channels last, [B, H, W, D].
"""

import importlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CONFIG, WEIGHTS = "config.json", "weights.pt"


class Levels(NamedTuple):
    """All levels of B images and B texts, and the heat map of each pair: image b and text b."""

    shallow: Tensor  # [B, H1, W1, D] image regions, contrasted with words in training
    deep: Tensor  # [B, H2, W2, D] image regions, contrasted with sentences in training
    whole: Tensor  # [B, D] the global image vector, contrasted with the report in training
    words: Tensor  # [B, L, D], zero in slots without a word; slot 0 is [CLS]
    sentences: Tensor  # [B, L, D], zero in slots without a sentence; slot 0 is [CLS]
    report: Tensor  # [B, D]
    asked: Tensor  # [B, D] the query of the heat map: the report embedding, or the mean of the sentences
    heatmap: Tensor  # [B, S, S], un-normalised


def load(folder: str | Path) -> "AFLoc":
    """The exported model of a folder, in evaluation mode, on the CPU."""
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text())
    with torch.device("meta"):  # without random values for weights that are read from the file
        model = AFLoc(config)
    state = torch.load(folder / WEIGHTS, weights_only=True, mmap=True)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


class AFLoc(nn.Module):
    """The two towers and the heat map that `config` (the content of config.json) describes."""

    spread: Tensor  # matrix from one axis of the deep map to one axis of the heat map

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.img_encoder = ImageEncoder(config["image"], config["projection_dim"])
        self.text_encoder = TextEncoder(config["text"])
        self.register_buffer("spread", map_matrix(config), persistent=False)

    def forward(
        self,
        image: Tensor,
        token_ids: Tensor,
        word_ids: Tensor,
        sentence_ids: Tensor,
        sentence_count: Tensor,
        word_count: Tensor | None = None,
    ) -> Levels:
        """All levels of images [B, S, S] and texts, and the heat map of each pair.

        Args:
            image: padded squares, uint8 or floats in [-1, 1].
            token_ids, word_ids, sentence_ids: [B, L]; the word of each piece and the sentence of each word, or -1.
            sentence_count: [B], the number of sentences, with `[CLS]`.
            word_count: [B], the number of words, with `[CLS]`; no output depends on it.
        """
        shallow, deep, whole = self.encode_image(image)
        words, sentences, report, asked = self.encode_text(token_ids, word_ids, sentence_ids, sentence_count)
        return Levels(shallow, deep, whole, words, sentences, report, asked, self.heat_map(deep, asked))

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The shallow map [B, H1, W1, D], deep map [B, H2, W2, D] and global vector [B, D] of squares [B, S, S]."""
        shallow, deep, whole = self.img_encoder(image)
        shallow, deep = shallow.permute(0, 2, 3, 1), deep.permute(0, 2, 3, 1)
        if self.config["normalize"]:
            shallow, deep, whole = unit_norm(shallow), unit_norm(deep), unit_norm(whole)
        return shallow, deep, whole

    def encode_text(
        self, token_ids: Tensor, word_ids: Tensor, sentence_ids: Tensor, sentence_count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words and sentences [B, L, D], the report [B, D], and the query of the heat map [B, D]."""
        words, sentences, report = self.text_encoder(token_ids, word_ids, sentence_ids)
        if self.config["normalize"]:
            words, sentences, report = unit_norm(words), unit_norm(sentences), unit_norm(report)
        if self.config["localization"]["prompt_level"] == "report":
            return words, sentences, report, report + 0  # a new tensor, so that both outputs keep their names
        slot = torch.arange(sentences.shape[1], device=sentences.device)
        chosen = ((slot > 0) & (slot < sentence_count[:, None])).to(sentences.dtype)
        asked = (chosen[..., None] * sentences).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)
        return words, sentences, report, asked

    def heat_map(self, deep: Tensor, asked: Tensor) -> Tensor:
        """Un-normalised maps [B, S, S] of the padded square, from deep maps [B, H2, W2, D] and queries [B, D]."""
        settings = self.config["localization"]
        cells = torch.einsum("bhwd,bd->bhw", deep, asked)
        if settings["similarity"] == "presence":  # a soft step of the cosine
            lengths = deep.norm(dim=-1) * asked.norm(dim=-1)[:, None, None]
            cosine = cells / torch.where(lengths > 0, lengths, 1)
            sharpness, threshold = settings["presence_sharpness"], settings["presence_threshold"]
            if settings["presence_growth"]:  # the step is lower for large findings; it is as set for 1 % of the regions
                standing_out = torch.sigmoid(5.0 * sharpness * (cosine - threshold))
                extent = (standing_out.sum((1, 2), keepdim=True) + 0.5) / (cells.shape[1] * cells.shape[2])
                threshold = threshold - settings["presence_growth"] * torch.log2(extent / 0.01)
            cells = torch.sigmoid(sharpness * (cosine - threshold))
        maps = self.spread @ cells @ self.spread.T
        return sharpened(maps) if settings.get("sharpen") else maps


def sharpened(maps: Tensor) -> Tensor:
    """Maps [B, S, S] with a step at mean + 2 standard deviations; range and peaks stay."""

    def scaled(x: Tensor) -> Tensor:
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        return (x - low) / torch.where(high > low, high - low, 1)

    mean = maps.mean((1, 2), keepdim=True)
    deviation = (maps - mean).square().mean((1, 2), keepdim=True).sqrt()
    step = torch.sigmoid((maps - mean) / torch.where(deviation > 0, deviation, 1) - 2.0)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return low + (high - low) * (0.99 * scaled(step) + 0.01 * scaled(maps))


def unit_norm(x: Tensor) -> Tensor:
    """Vectors divided by their norm; zero vectors stay zero."""
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)


# Image tower


class ImageEncoder(nn.Module):
    """Scaling, resizing, the backbone, and one projection per level."""

    def __init__(self, settings: dict, width: int):
        super().__init__()
        self.input_size = settings["input_size"]
        structure = settings["structure"]
        families: dict[str, type[DenseNet] | type[ResNet]] = {"densenet": DenseNet, "resnet": ResNet}
        family = settings["family"]
        if family in families:
            self.model = families[family](structure)
        else:
            beside = f"{__package__}.afloc_transformer" if __package__ else "afloc_transformer"
            self.model = importlib.import_module(beside).VisionTransformer(structure, family, self.input_size)
        self.channels = structure.get("channels", 3)
        self.mean, self.std = settings.get("mean", [0.5]), settings.get("std", [0.5])
        shallow, deep, whole = self.model.widths
        self.local2_embedder = convolution(shallow, width)
        self.local_embedder = convolution(deep, width)
        self.global_embedder = nn.Linear(whole, width)
        self.center = settings["center"]
        if self.center:
            self.local2_norm, self.local_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.global_norm = nn.BatchNorm1d(width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (image.float() / 255 - 0.5) / 0.5 if image.dtype == torch.uint8 else image
        x, side = x[:, None], image.shape[-1]
        if side % self.input_size == 0:
            x = functional.avg_pool2d(x, side // self.input_size)  # bilinear sampling would ignore pixels
        else:
            x = functional.interpolate(x, (self.input_size, self.input_size), mode="bilinear", align_corners=True)
        x = x.expand(-1, self.channels, -1, -1)
        if (self.mean, self.std) != ([0.5], [0.5]):  # pixels in [0, 1], as the weights expect them
            mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
            x = (x / 2 + 0.5 - mean) / std
        shallow, deep, whole = self.model(x)
        shallow, deep, whole = self.local2_embedder(shallow), self.local_embedder(deep), self.global_embedder(whole)
        if self.center:
            shallow, deep, whole = self.local2_norm(shallow), self.local_norm(deep), self.global_norm(whole)
        return shallow, deep, whole


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """A basic block, or a bottleneck with the stride on its 3x3 convolution (v1.5)."""

    def __init__(self, inputs: int, width: int, stride: int, structure: dict):
        super().__init__()
        groups = structure["groups"]
        if structure["bottleneck"]:
            inner, outputs = width * structure["group_width"] // 64 * groups, width * 4
            sizes = [(inputs, inner), (inner, inner, 3, stride, groups), (inner, outputs)]
        else:
            outputs = width
            sizes = [(inputs, outputs, 3, stride), (outputs, outputs, 3)]
        self.count, self.outputs = len(sizes), outputs
        for number, size in enumerate(sizes, 1):
            self.add_module(f"conv{number}", convolution(*size))
            self.add_module(f"bn{number}", nn.BatchNorm2d(size[1]))
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = functional.relu(y) if number < self.count else y
        return functional.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """A ResNet with torchvision's names. It returns the shallow map, the deep map and the mean of the last stage."""

    def __init__(self, structure: dict):
        super().__init__()
        self.structure = structure
        stride = structure["stem_stride"] // 2 if structure["stem_pool"] else structure["stem_stride"]
        inputs = structure.get("channels", 3)
        self.conv1 = convolution(inputs, structure["stem_width"], structure["stem_kernel"], stride)
        self.bn1 = nn.BatchNorm2d(structure["stem_width"])
        channels, outputs = structure["stem_width"], []
        stages = zip(structure["blocks"], structure["widths"], structure["strides"], strict=True)
        for stage, (blocks, width, stride) in enumerate(stages, 1):
            layer = nn.Sequential()
            for index in range(blocks):
                layer.append(ResidualBlock(channels, width, stride if index == 0 else 1, structure))
                channels = layer[-1].outputs
            self.add_module(f"layer{stage}", layer)
            outputs.append(channels)
        deep = structure["deep_stage"]
        self.widths = outputs[structure["shallow_stage"] - 1], outputs[deep - 1], outputs[-1]
        for stage in range(deep + 1, len(outputs) + 1) if structure["top_down"] else ():
            self.add_module(f"lateral{stage}", convolution(outputs[stage - 1], outputs[deep - 1]))
        if cells := structure.get("position", 0):
            self.position = nn.Embedding(cells**2, outputs[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.relu(self.bn1(self.conv1(x)))
        if self.structure["stem_pool"]:
            x = functional.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(1, len(self.structure["blocks"]) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage == 1 and (cells := self.structure.get("position", 0)):
                where = self.position.weight.T.reshape(1, -1, cells, cells)
                x = x + upsample_strided(where, x.shape[-1])
            maps.append(x)
        shallow, deep = self.structure["shallow_stage"], self.structure["deep_stage"]
        found = maps[deep - 1]
        if self.structure["top_down"]:
            found = found + self._from_above(maps, deep)
        return maps[shallow - 1], found, x.mean((2, 3))

    def _from_above(self, maps: list[Tensor], deep: int) -> Tensor:
        """The sum of the stages after the deep one, projected to its width and upsampled to its size."""
        total = torch.zeros((), device=maps[0].device)
        for stage in range(len(maps), deep, -1):
            above = self.get_submodule(f"lateral{stage}")(maps[stage - 1]) + total
            total = upsample_strided(above, maps[stage - 2].shape[-1])
        return total


def upsample_strided(x: Tensor, side: int) -> Tensor:
    """Linear interpolation of `x` [B, C, h, h] to `side` cells per axis; every (side / h)-th is a cell of `x`."""
    cells = x.shape[-1]
    position = (torch.arange(side, device=x.device) / math.ceil(side / cells)).clamp(max=cells - 1)
    matrix = (1 - (position[:, None] - torch.arange(cells, device=x.device)).abs()).clamp(min=0)
    return matrix @ x @ matrix.T


class DenseLayer(nn.Module):
    """Two normalised convolutions, whose output is appended to the channels of the input."""

    def __init__(self, inputs: int, structure: dict):
        super().__init__()
        growth, inner = structure["growth"], structure["bottleneck"] * structure["growth"]
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, inner)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), convolution(inner, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """A DenseNet with torchvision's names. The maps are taken after the norm at the start of each transition."""

    def __init__(self, structure: dict):
        super().__init__()
        self.blocks, channels = structure["blocks"], structure["stem_width"]
        stem = convolution(structure.get("channels", 3), channels, 7, 2)
        self.features = nn.ModuleDict({"conv0": stem, "norm0": nn.BatchNorm2d(channels)})
        outputs = []
        for number, layers in enumerate(self.blocks, 1):
            block = nn.Sequential()
            for index in range(1, layers + 1):
                block.add_module(f"denselayer{index}", DenseLayer(channels, structure))
                channels += structure["growth"]
            self.features[f"denseblock{number}"] = block
            outputs.append(channels)
            norm = nn.BatchNorm2d(channels)
            if number == len(self.blocks):
                self.features["norm5"] = norm
            else:
                conv = convolution(channels, channels // 2)
                self.features[f"transition{number}"] = nn.ModuleDict({"norm": norm, "conv": conv})
                channels //= 2
        self.widths = outputs[1], outputs[2], outputs[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part = self.features.get_submodule
        x = functional.max_pool2d(functional.relu(part("norm0")(part("conv0")(x))), 3, 2, 1)
        maps = []
        for number in range(1, len(self.blocks) + 1):
            x = part(f"denseblock{number}")(x)
            last = number == len(self.blocks)
            x = functional.relu(part("norm5" if last else f"transition{number}.norm")(x))
            maps.append(x)
            if not last:
                x = functional.avg_pool2d(part(f"transition{number}.conv")(x), 2)
        return maps[1], maps[2], x.mean((2, 3))


# Text tower


class BertLayer(nn.Module):
    """Self-attention, then a two-layer network, each with a residual and a layer norm; Hugging Face's names."""

    def __init__(self, settings: dict):
        super().__init__()
        width, inner, epsilon = settings["hidden_size"], settings["intermediate_size"], settings["layer_norm_eps"]
        self.heads, self.activation = settings["num_attention_heads"], settings["hidden_act"]
        asks = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        told = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, epsilon)})
        self.attention = nn.ModuleDict({"self": asks, "output": told})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, epsilon)})

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        part = self.get_submodule
        query, key, value = (
            part(f"attention.self.{name}")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=attend[:, None])
        told = part("attention.output.dense")(context.transpose(1, 2).flatten(2))
        x = part("attention.output.LayerNorm")(x + told)
        hidden = self.activate(part("intermediate.dense")(x))
        return part("output.LayerNorm")(x + part("output.dense")(hidden))

    def activate(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return functional.gelu(x)
        if self.activation in ("gelu_new", "gelu_pytorch_tanh"):
            return functional.gelu(x, approximate="tanh")
        return {"relu": functional.relu, "silu": functional.silu}[self.activation](x)


class Bert(nn.Module):
    """BertModel (post-LN) that returns all hidden states. The pooler exists for its names only; nothing uses it."""

    def __init__(self, settings: dict):
        super().__init__()
        width, self.layers = settings["hidden_size"], settings["num_hidden_layers"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(settings["vocab_size"], width),
                "position_embeddings": nn.Embedding(settings["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(settings["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, settings["layer_norm_eps"]),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(settings) for _ in range(self.layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, token_ids: Tensor, attend: Tensor, positions: Tensor) -> list[Tensor]:
        part = self.get_submodule
        x = part("embeddings.word_embeddings")(token_ids)
        x = x + part("embeddings.token_type_embeddings")(torch.zeros_like(token_ids[:1, :1]))
        states = [part("embeddings.LayerNorm")(x + part("embeddings.position_embeddings")(positions))]
        for index in range(self.layers):
            states.append(part(f"encoder.layer.{index}")(states[-1], attend))
        return states


class TextEncoder(nn.Module):
    """BERT, and the merging of pieces into words, of words into sentences, and of all slots into the report."""

    def __init__(self, settings: dict):
        super().__init__()
        self.settings = settings
        self.model = Bert(settings["bert"])
        if width := settings["projection"]:  # CXR-BERT's projection head, for every piece
            dense, norm = nn.Linear(settings["bert"]["hidden_size"], width), nn.LayerNorm(width, 1e-12)
            head = {"dense_to_hidden": dense, "LayerNorm": norm, "dense_to_output": nn.Linear(width, width)}
            self.cls_projection_head = nn.ModuleDict(head)

    def forward(self, token_ids: Tensor, word_ids: Tensor, sentence_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        if settings["context"] == "sentence":
            attend, positions = sentence_context(word_ids, sentence_ids)
        else:
            attend = (word_ids >= 0)[:, None].expand(-1, word_ids.shape[1], -1)
            positions = torch.arange(word_ids.shape[1], device=word_ids.device)[None]
        states = self.model(token_ids, attend, positions)[-settings["last_layers"] :]
        pieces = sum(states[1:], states[0])
        if settings["merge_layers"] == "mean":
            pieces = pieces / len(states)
        if settings["projection"]:
            part = self.cls_projection_head.get_submodule
            hidden = functional.gelu(part("dense_to_hidden")(pieces))
            pieces = part("dense_to_output")(part("LayerNorm")(hidden))
        words, counts = merge_segments(pieces, word_ids)
        if settings["merge_pieces"] == "mean":
            # The word just before [SEP] is always a sum, as in the published release.
            summed = torch.arange(words.shape[1], device=words.device) == word_ids.amax(1, keepdim=True) - 1
            words = words / torch.where(summed, 1, counts.clamp(min=1))[..., None]
        sentences, counts = merge_segments(words, sentence_ids)
        return words, sentences / counts.clamp(min=1)[..., None], words.mean(1)


def merge_segments(units: Tensor, segment_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the units of each segment [B, L, D] and their number [B, L]. Units of id -1 are ignored."""
    segments = torch.arange(units.shape[1], device=units.device)
    belongs = (segment_ids[:, None, :] == segments[None, :, None]).to(units.dtype)  # [B, segment, unit]
    return belongs @ units, belongs.sum(2)


def sentence_context(word_ids: Tensor, sentence_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The attention mask [B, L, L] and positions [B, L] of pieces with which each sentence is read alone."""
    slots = torch.arange(word_ids.shape[1], device=word_ids.device)
    sentence = torch.gather(sentence_ids, 1, word_ids.clamp(min=0).long())  # sentence of each piece; -1 for periods
    sentence = torch.where(word_ids >= 0, sentence, -2)
    together = sentence[:, :, None] == sentence[:, None, :]
    first = torch.where(together, slots, word_ids.shape[1]).amin(2)
    return together, torch.where(sentence == 0, 0, slots - first + 1)


# Heat map


def map_matrix(config: dict) -> Tensor:
    """The matrix [S, cells] that filters one axis of the deep map by a Gaussian and resizes it to the square's side."""
    settings, cells, side = config["localization"], config["deep_cells"], config["image_size"]
    with torch.device("cpu"):
        pixel = torch.arange(side, dtype=torch.float64) + 0.5
        if settings["cells"] == "receptive_field":  # strided convolutions centre cell k on input pixel k * stride
            input_size = config["image"]["input_size"]
            stride = 1 << max(0, math.ceil(math.log2(input_size / cells) - 1e-9))
            centre = (pixel * input_size / side - 0.5) / stride
        else:
            centre = pixel * cells / side - 0.5
        centre = centre.clamp(0, cells - 1)
        bilinear = (1 - (centre[:, None] - torch.arange(cells)).abs()).clamp(min=0)
        return (bilinear @ gaussian_matrix(cells, settings["sigma"] * cells / 19)).float()


def gaussian_matrix(cells: int, sigma: float) -> Tensor:
    """SciPy's Gaussian filter of one axis as a matrix [cells, cells]: cut off at 4 sigma, mirrored at the border."""
    if sigma == 0:
        return torch.eye(cells, dtype=torch.float64)
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    matrix = torch.zeros(cells, cells, dtype=torch.float64)
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        for cell in range(cells):
            source = (cell + offset) % (2 * cells)
            matrix[cell, min(source, 2 * cells - 1 - source)] += weight
    return matrix
