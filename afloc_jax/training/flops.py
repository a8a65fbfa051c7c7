"""The floating-point operations of a training step, counted from the shapes of its products.

They are model FLOPs, in the sense of the model FLOPs utilisation of PaLM (Chowdhery et al., arXiv 2204.02311, appendix
B): a multiply-add is two, the forward and the backward pass are counted, and what is computed again to save memory is
not, neither in the encoders (`training.remat`, `training.micro_batch`) nor in the tiles of the loss. The compiler's own
count would be of no use, because it counts the body of a loop once.

- Encoders: the matrix products and convolutions of one pair, all slots of its text and of its hard negatives included.
- A local level: its similarity with the K images of the contrast group needs 2 products of N regions x D for each valid
  unit (1 with `region_pooling="logsumexp"`), and twice as many in the backward pass. D is the width of the shallow
  features with `low_rank`. Slots without a unit count nothing. Each hard negative is compared with one image more.
- The report level: one product of width D with each of the K images, and two in the backward pass.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, PyTree

from afloc_jax.levels import TokenBatch
from afloc_jax.models import build, initial_variables, trainable
from afloc_jax.models.afloc import backbone_features
from afloc_jax.models.attention import COMPUTED_AGAIN
from afloc_jax.models.settings import ModelSettings
from afloc_jax.training.settings import RunConfig

_FORWARD_AND_BACKWARD = 3  # the backward pass of a product has two products of its size


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """The FLOPs of a training step, on all devices together."""

    pair: float
    word: float
    sentence: float
    first_unit: int  # the units of a caption before this one are not compared: `[CLS]` where units are contrasted

    def total(self, pairs: int, words: int, sentences: int) -> float:
        """The FLOPs of a batch of so many pairs, words and sentences (with `[CLS]`, as the counts of a batch are)."""
        words, sentences = (units - self.first_unit * pairs for units in (words, sentences))
        return pairs * self.pair + words * self.word + sentences * self.sentence


def step_flops(config: RunConfig, side: int) -> StepFlops:
    """The FLOPs of a step of `config`, whose text encoder and vocabulary are known, on images of `side` pixels."""
    loss, slots, width = config.loss, config.data.max_tokens, config.model.projection_dim
    given = bool(config.data.features)
    encoders, regions = _encoders(config.model, side, slots, loss.is_low_rank, 1 + loss.hard_negatives, given)
    group = loss.group_size(config.training.batch_size)
    of_product = _FORWARD_AND_BACKWARD * 2 * group
    of_sentence = _FORWARD_AND_BACKWARD * 2 * (group + loss.hard_negatives)
    products = 2 if loss.region_pooling == "attention" else 1
    shallow, features = regions[loss.word_map]
    deep, _ = regions["deep"]
    pair = encoders
    if loss.weights.report:
        pair += of_product * width
    if loss.is_low_rank and loss.weights.word:  # what low_rank.py computes for every image and every slot
        pair += _FORWARD_AND_BACKWARD * 2 * features * (shallow * features + slots * width)
    return StepFlops(
        pair=pair,
        word=of_product * products * shallow * features if loss.weights.word else 0,
        sentence=of_sentence * products * deep * width if loss.weights.sentence else 0,
        first_unit=1 if loss.contrast_unit == "unit" else 0,
    )


@functools.lru_cache(maxsize=32)
def _encoders(
    settings: ModelSettings, side: int, slots: int, low_rank: bool, texts: int, features_given: bool
) -> tuple[int, dict[str, tuple[int, int]]]:
    """The FLOPs of one pair in the encoders, and the regions and their width of the two maps that the loss reads.

    The gradient of a model is traced, so frozen parts and the first layer have the backward pass that they have in a
    step. With `low_rank` the shallow map is the one before its projection. With `features_given` the backbone is not
    computed.
    """
    model = build(settings)
    variables = jax.eval_shape(lambda: initial_variables(model, jax.random.key(0)))
    batch = jax.eval_shape(lambda: (jnp.zeros((1, side, side), jnp.uint8), _tokens(texts, slots)))

    if features_given:
        backbone = {name: tree["image_encoder"].get("backbone", {}) for name, tree in variables.items() if tree}
        reads = functools.partial(backbone_features, settings.image, dtype=jnp.float32)
        batch = jax.eval_shape(reads, backbone, batch[0]), batch[1]

    def embed(params: PyTree[Array], rest: PyTree[Array], image: Array, tokens: TokenBatch) -> dict[str, Array]:
        trains = trainable(params, settings)
        params = jax.tree.map(lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf), params, trains)
        (levels, text), _ = model.apply(
            {"params": params, **rest},
            image,
            tokens,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
            with_factors=low_rank,
        )
        shallow = levels.shallow_factors[0] if low_rank else levels.shallow
        named = {"shallow": shallow, "deep": levels.deep, "whole": levels.whole}
        return named | {"words": text.words, "sentences": text.sentences, "report": text.report}

    params = variables["params"]
    rest = {name: value for name, value in variables.items() if name != "params"}

    def gradient(params: PyTree[Array], rest: PyTree[Array], *batch: PyTree[Array]) -> PyTree[Array]:
        embeddings, pull_back = jax.vjp(lambda params: embed(params, rest, *batch), params)
        return embeddings, pull_back(embeddings)

    maps = jax.eval_shape(embed, params, rest, *batch)
    traced = jax.make_jaxpr(gradient)(params, rest, *batch)
    sizes = {name: (math.prod(maps[name].shape[1:-1]), maps[name].shape[-1]) for name in ("shallow", "deep")}
    return product_flops(traced.jaxpr), sizes


def _tokens(texts: int, slots: int) -> TokenBatch:
    ids, count = jnp.zeros((texts, slots), jnp.int32), jnp.zeros(texts, jnp.int32)
    return TokenBatch(ids, ids, ids, count, count)


def product_flops(traced: Jaxpr) -> int:
    """The FLOPs of the matrix products and convolutions that the results of a traced function depend on.

    Loops of known length count as often as they run, those of unknown length once.
    """
    needed = {value for value in traced.outvars if isinstance(value, Var)}
    total = 0
    for equation in reversed(traced.eqns):
        again = COMPUTED_AGAIN in str(equation.source_info.name_stack)
        if again or needed.isdisjoint(equation.outvars):
            continue
        needed.update(value for value in equation.invars if isinstance(value, Var))
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += _product(equation) + times * sum(product_flops(inner) for inner in _inner(equation))
    return total


def _product(equation: JaxprEqn) -> int:
    """The FLOPs of a matrix product or a convolution; 0 for another operation."""
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    left, right = (_shape(value) for value in equation.invars)
    results = math.prod(_shape(equation.outvars[0]))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms, dilation = math.prod(left[int(axis)] for axis in contracted), 1
    else:
        _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
        terms = math.prod(right[int(axis)] for axis in (inputs, *window))
        # A dilated input is mostly zeros, which need no product: the gradient of a convolution with a stride.
        dilation = math.prod(int(factor) for factor in equation.params["lhs_dilation"])
    return 2 * results * terms // dilation


def _shape(value: Var | Literal) -> tuple[int, ...]:
    aval = value.aval
    assert isinstance(aval, jax.core.ShapedArray)  # as all operands of products are
    shape: tuple[int, ...] = aval.shape
    return shape


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The traced functions that an operation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
