"""What the program knows of an image backbone: one `Family` per kind of network, one `Backbone` per name.

A family's file (resnet.py, densenet.py) defines its structure, its module, its `Family` and its backbones; settings.py
joins them into the table `BACKBONES`. Nothing else asks which family a backbone belongs to.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import flax.linen as nn
from jaxtyping import Array, Float

from afloc_jax.settings import Settings

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a network's parameters, by their PyTorch name within the network."""


class Features(NamedTuple):
    """What a backbone makes of an image: two maps and a vector, none of them projected to the shared width."""

    shallow: Float[Array, "B H1 W1 C1"]
    deep: Float[Array, "B H2 W2 C2"]
    whole: Float[Array, "B C3"]  # the mean over the last map, in float32 or better


@dataclass(frozen=True)
class Structure(Settings, section="model.image.options"):
    """What the networks of a family differ in. Every family derives its own dataclass, whose fields are its options."""

    def fingerprint(self) -> str:
        """This structure in words, as far as the shapes of its parameters show it (see `Family.fingerprint`)."""
        raise NotImplementedError

    def brief(self) -> Self:
        """A network that is faster to trace, whose arrays stand for those of this one (see `stands_for`)."""
        return self

    def stands_for(self, module: str) -> Sequence[str]:
        """The names of the modules that `brief` leaves out and whose arrays are shaped like those of `module`."""
        return ()


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        name: what exports call it.
        module: `module(structure, layers, name=...)`, which makes `Features` of images [B, S, S, C] and `train`. Its
            images have three channels, or one that counts as replicated over three. `layers` are convolution.Layers.
        torch_names: pairs of a regular expression for the path of a module inside the network, joined by "/", and the
            module's name in PyTorch. The first that matches the whole path decides.
        fingerprint: the structure in words, as far as shapes show it; "" for shapes of another family.
    """

    name: str
    module: Callable[..., nn.Module]
    torch_names: tuple[tuple[str, str], ...]
    fingerprint: Callable[[Shapes], str]


@dataclass(frozen=True)
class Backbone:
    """A network by name. `options` are the fields of its structure that `model.image.options` may set."""

    family: Family
    structure: Structure
    options: tuple[str, ...] = ()


def count_parts(names: Iterable[str], pattern: str, first: int) -> int:
    """How many numbered parts there are, when they are numbered without gaps from `first`; a gap ends the count."""
    numbers = {int(match[1]) for match in (re.match(pattern, name) for name in names) if match}
    count = 0
    while first + count in numbers:
        count += 1
    return count
