"""Vision transformers of AFLoc in plain PyTorch, with the names of Hugging Face: ViT, DINOv2, DINOv2 with registers.

afloc_torch.py imports this file for models whose image tower is one of them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# The names of ViT's and DINOv2's parts of a block: two norms, two layers of its network.
NAMES = {
    "vit": ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
    "dinov2": ("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
}


class Factors(nn.Module):
    """One factor a channel (LayerScale)."""

    def __init__(self, width: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))


class Embeddings(nn.Module):
    """The class token, registers and patches, with position embeddings interpolated to the grid of the input."""

    places: Tensor  # matrix from one axis of the grid of positions to one axis of the patches

    def __init__(self, structure: dict, cells: int):
        super().__init__()
        width, patch, grid = structure["width"], structure["patch"], structure["position_grid"]
        self.grid, self.registers = grid, structure["registers"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, self.registers, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch)})
        self.register_buffer("places", cubic_matrix(grid, cells, self.registers > 0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.get_submodule("patch_embeddings.projection")(x).flatten(2).transpose(1, 2)
        places = self.position_embeddings[0, 1:].unflatten(0, (self.grid, self.grid)).permute(2, 0, 1)
        places = (self.places @ places @ self.places.T).flatten(1).T
        parts = [self.cls_token + self.position_embeddings[:, :1]]
        parts += [self.register_tokens] if self.registers else []
        return torch.cat([*(part.expand(x.shape[0], -1, -1) for part in parts), patches + places], 1)


class Block(nn.Module):
    """Self-attention, then a two-layer network, each after a layer norm and added to its input."""

    def __init__(self, structure: dict, family: str):
        super().__init__()
        width, inner, self.heads = structure["width"], structure["mlp_width"], structure["heads"]
        self.names, self.activation = NAMES[family], structure["activation"]
        asks = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"attention": asks, "output": nn.ModuleDict({"dense": nn.Linear(width, width)})})
        layers = (nn.LayerNorm(width, structure["epsilon"]), nn.LayerNorm(width, structure["epsilon"]))
        for name, layer in zip(self.names, (*layers, nn.Linear(width, inner), nn.Linear(inner, width)), strict=True):
            first, _, second = name.partition(".")
            if not second:
                self.add_module(first, layer)
            elif first in self._modules:
                self.get_submodule(first).add_module(second, layer)
            else:
                self.add_module(first, nn.ModuleDict({second: layer}))
        self.scales = structure["layer_scale"] > 0
        if self.scales:
            self.layer_scale1, self.layer_scale2 = Factors(width), Factors(width)

    def forward(self, x: Tensor) -> Tensor:
        norm1, norm2, inner, outer = (self.get_submodule(name) for name in self.names)
        y = norm1(x)
        query, key, value = (
            self.get_submodule(f"attention.attention.{name}")(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        y = self.get_submodule("attention.output.dense")(y)
        x = x + (y * self.layer_scale1.lambda1 if self.scales else y)
        y = outer(self.activate(inner(norm2(x))))
        return x + (y * self.layer_scale2.lambda1 if self.scales else y)

    def activate(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return functional.gelu(x)
        if self.activation in ("gelu_new", "gelu_pytorch_tanh"):
            return functional.gelu(x, approximate="tanh")
        return {"relu": functional.relu, "silu": functional.silu}[self.activation](x)


class VisionTransformer(nn.Module):
    """A vision transformer of inputs [B, 3, S, S]. Its maps are the patch tokens of two blocks, after the last norm."""

    def __init__(self, structure: dict, family: str, input_size: int):
        super().__init__()
        self.structure, self.cells = structure, input_size // structure["patch"]
        self.embeddings = Embeddings(structure, self.cells)
        blocks = nn.ModuleList(Block(structure, family) for _ in range(structure["blocks"]))
        self.encoder = nn.ModuleDict({"layer": blocks})
        self.layernorm = nn.LayerNorm(structure["width"], structure["epsilon"])
        self.widths = (structure["width"],) * 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embeddings(x)
        shallow = x
        for number in range(1, self.structure["blocks"] + 1):
            x = self.get_submodule(f"encoder.layer.{number - 1}")(x)
            shallow = x if number == self.structure["shallow_block"] else shallow
        x, first = self.layernorm(x), 1 + self.structure["registers"]
        maps = (tokens[:, first:].transpose(1, 2) for tokens in (self.layernorm(shallow), x))
        shallow, deep = (tokens.unflatten(2, (self.cells, self.cells)) for tokens in maps)
        return shallow, deep, x[:, 0] if self.structure["whole"] == "class" else deep.mean((2, 3))


def cubic_matrix(cells: int, target: int, antialias: bool) -> Tensor:
    """Bicubic interpolation of one axis as a matrix [target, cells], as PyTorch's with `align_corners=False`."""
    with torch.device("cpu"):
        scale, a = cells / target, -0.5 if antialias else -0.75
        stretch = max(scale, 1.0) if antialias else 1.0
        centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
        reach = int(2 * stretch) + 1
        taps = centres.floor().long()[:, None] + torch.arange(-reach, reach + 2)
        distance = (taps - centres[:, None]).abs() / stretch
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
        if antialias:
            weights = weights * ((taps >= 0) & (taps < cells))
            weights = weights / weights.sum(1, keepdim=True)
        matrix = torch.zeros(target, cells, dtype=torch.float64)
        return matrix.scatter_add(1, taps.clamp(0, cells - 1), weights).float()
