"""The description of image backbones: one `Family` per kind of network, one `Backbone` per name.

The file of a family (resnet.py, densenet.py) defines its structure, its module, its `Family` and its backbones.
settings.py joins them into the table `BACKBONES`. No other code depends on the family of a backbone.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import flax.linen as nn
from jaxtyping import Array, Float

from afloc_jax.settings import Json, Settings

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a network's parameters, by their PyTorch name within the network."""


class Features(NamedTuple):
    """The output of a backbone: two maps and a vector, not yet projected to the shared width."""

    shallow: Float[Array, "B H1 W1 C1"]
    deep: Float[Array, "B H2 W2 C2"]
    whole: Float[Array, "B C3"]  # the mean over the last map, in float32 or better


@dataclass(frozen=True)
class Structure(Settings, section="model.image.options"):
    """The structure of a network. Each family derives a dataclass from it, with the fields in which networks differ.

    Attributes:
        strided: whether the cells of the maps are centred on every n-th pixel, as strided convolutions centre them;
            else they are tiles of the image.
    """

    strided: ClassVar[bool] = True

    def fingerprint(self) -> str:
        """A text on the structure, made from what parameter shapes show (see `Family.fingerprint`)."""
        raise NotImplementedError

    @property
    def usual_input(self) -> int:
        """The side in pixels that the parameters were made for; 0 where any side does."""
        return 0

    def check_input(self, side: int) -> None:
        """Raises UsageError where the network takes no input of `side` x `side` pixels; the message says what fits."""

    def keeps(self, module: str) -> bool:
        """Whether a module of the network keeps its initial parameters while others are trained."""
        return False

    def brief(self) -> Self:
        """A smaller network that is faster to trace. Its arrays have the shapes of this one's (see `stands_for`)."""
        return self

    def stands_for(self, module: str) -> Sequence[str]:
        """The modules that `brief` leaves out and whose arrays have the shapes of those of `module`."""
        return ()


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        name: the name in exports.
        module: `module(structure, layers, name=...)` returns a Flax module, which computes `Features` from images
            [B, S, S, C] and `train`. C is 3, or 1 for a channel that counts as replicated over three. `layers` are
            convolution.Layers.
        torch_names: pairs of a regular expression for the path of a module inside the network, joined by "/", and the
            module's name in PyTorch. The first one that matches the full path is used.
        fingerprint: returns a text on the structure from parameter shapes, or "" for shapes of another family.
        options: returns the options in which networks of one name differ, from parameter shapes of the family and the
            config.json beside them (empty if there is none). Raises UserError where these do not belong together.
    """

    name: str
    module: Callable[..., nn.Module]
    torch_names: tuple[tuple[str, str], ...]
    fingerprint: Callable[[Shapes], str]
    options: Callable[[Shapes, Mapping[str, Json]], dict[str, Json]] = lambda shapes, config: {}


@dataclass(frozen=True)
class Backbone:
    """A network with a name. `options` are the fields of its structure that `model.image.options` may set."""

    family: Family
    structure: Structure
    options: tuple[str, ...] = ()


def count_parts(names: Iterable[str], pattern: str, first: int) -> int:
    """The number of parts whose names match `pattern`, numbered from `first` on; a gap in numbers ends the count."""
    numbers = {int(match[1]) for match in (re.match(pattern, name) for name in names) if match}
    count = 0
    while first + count in numbers:
        count += 1
    return count
