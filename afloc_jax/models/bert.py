"""The BERT encoder (Devlin et al., arXiv 1810.04805), numerically equal to BertModel of Hugging Face Transformers.

Layer norms come after each residual sum (post-LN). The token type is always 0. Positions are absolute and learned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.errors import UsageError
from afloc_jax.models.activations import ACTIVATIONS
from afloc_jax.models.normalization import LayerNorm, recomputed
from afloc_jax.models.parameters import Dense, Embed, Parameters
from afloc_jax.settings import BELOW_ONE, NOT_NEGATIVE, Json, Rule, Settings, setting, up_to

# Fields of a BertConfig of which only one value is supported, and fields that have no effect here.
ONE_VALUE: dict[str, Json] = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_IGNORED = frozenset({
    "_name_or_path", "add_cross_attention", "architectures", "attn_implementation", "bad_words_ids", "bos_token_id",
    "chunk_size_feed_forward", "classifier_dropout", "directionality", "do_lower_case", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "model_type", "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "pooler_fc_size",
    "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
    "position_embedding_type", "prefix", "problem_type", "return_dict", "sep_token_id", "task_specific_params",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache",
})  # fmt: skip
_HEAD_EPSILON = 1e-12  # of the layer norm in CXR-BERT's projection head, whatever its config.json says


@dataclass(frozen=True)
class BertSettings(Settings, section="model.text.bert"):
    """The fields of a Hugging Face BertConfig that change the computation; the defaults are BERT-base, uncased."""

    vocab_size: int = setting(30522, up_to(1 << 22))
    hidden_size: int = setting(768, up_to(1 << 14))
    num_hidden_layers: int = setting(12, up_to(256))
    num_attention_heads: int = setting(12, up_to(1024))
    intermediate_size: int = setting(3072, up_to(1 << 16))
    hidden_act: str = setting("gelu", Rule(lambda name: name in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"))
    hidden_dropout_prob: float = setting(0.1, BELOW_ONE)
    attention_probs_dropout_prob: float = setting(0.1, BELOW_ONE)
    max_position_embeddings: int = setting(512, up_to(1 << 17))
    type_vocab_size: int = setting(2, up_to(1024))
    initializer_range: float = setting(0.02, NOT_NEGATIVE)
    layer_norm_eps: float = setting(1e-12, NOT_NEGATIVE)

    def check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"{self.name_of('hidden_size')} = {self.hidden_size}: must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )

    @classmethod
    def from_hugging_face(cls, given: Mapping[str, Json]) -> "BertSettings":
        """The settings from the fields of a BertConfig. Fields without an effect here are ignored.

        Raises UsageError where a field is unknown, or has a value that this encoder does not support.
        """
        for key, only in ONE_VALUE.items():
            if given.get(key, only) != only:
                raise UsageError(f"{cls.name_of(key)} = {given[key]!r}: only {only!r} is supported")
        return cls.read({key: value for key, value in given.items() if key not in ONE_VALUE and key not in _IGNORED})


class BertLayer(nn.Module):
    """A transformer block: self-attention, then a two-layer network, each with a residual and a layer norm."""

    settings: BertSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], attend: Bool[Array, "B Q L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        settings = self.settings
        dense, norm, drop = _layers(settings, self.dtype, self.param_dtype, train)
        heads, width = settings.num_attention_heads, settings.hidden_size // settings.num_attention_heads

        query, key, value = (
            dense(settings.hidden_size, name=name)(x).reshape(*x.shape[:2], heads, width)
            for name in ("query", "key", "value")
        )
        drop_attention = train and settings.attention_probs_dropout_prob > 0
        with jax.named_scope("attention"):
            weights = nn.dot_product_attention_weights(
                query,
                key,
                mask=attend[:, None],  # [B, head, query, key]
                broadcast_dropout=False,
                dropout_rng=self.make_rng("dropout") if drop_attention else None,
                dropout_rate=settings.attention_probs_dropout_prob,
                deterministic=not drop_attention,
                dtype=self.dtype,
                # A softmax of logits in reduced precision would lose too much accuracy.
                force_fp32_for_softmax=jnp.finfo(self.dtype).bits < 32,
            )
            # In the precision of the values: a product of mixed precisions is computed in the higher one.
            context = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(self.dtype), value).reshape(x.shape)
        x = norm(name="attention_norm")(x + drop()(dense(settings.hidden_size, name="attention_output")(context)))

        inner = dense(settings.intermediate_size, name="intermediate")(x)
        hidden = recomputed(ACTIVATIONS[settings.hidden_act], inner)
        x = norm(name="output_norm")(x + drop()(dense(settings.hidden_size, name="output")(hidden)))
        block: Array = checkpoint_name(x, "block")
        return block


class Pooler(Parameters):
    """The parameters of BertModel's pooler. AFLoc does not use them; with them checkpoints stay complete."""

    settings: BertSettings
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> None:
        width = self.settings.hidden_size
        self.param("kernel", nn.initializers.normal(self.settings.initializer_range), (width, width), self.param_dtype)
        self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)


class ProjectionHead(nn.Module):
    """The projection head of CXR-BERT (Boecking et al., arXiv 2204.09817): dense, GELU, layer norm, dense.

    There it projects the last hidden state of `[CLS]`; here each piece, so that words and sentences lie in the same
    space. All parts have `width` features. The initial values are PyTorch's.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L D"]:
        dense = partial(
            Dense,
            self.width,
            dtype=self.dtype,
            param_dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        )
        hidden = recomputed(ACTIVATIONS["gelu"], dense(name="hidden")(x))
        norm = LayerNorm(epsilon=_HEAD_EPSILON, dtype=self.dtype, param_dtype=self.dtype, name="norm")
        projected: Array = dense(name="output")(norm(hidden))
        return projected


class Bert(nn.Module):
    """BertModel without its pooled output. It returns all hidden states."""

    settings: BertSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        attend: Bool[Array, "B *Q L"],
        positions: Int[Array, "B L"] | None = None,
        *,
        train: bool = False,
    ) -> list[Float[Array, "B L D"]]:
        """The hidden states after the embeddings and after each layer, `num_hidden_layers + 1` in all.

        Args:
            token_ids: ids of B texts in L slots.
            attend: which tokens may be attended to, by all tokens ([B, L], False for padding) or by each ([B, L, L]).
            positions: indices of the position embeddings; by default 0, 1, 2, ...
            train: whether dropout is on, with the random stream "dropout".

        Raises:
            UsageError: there are more token slots than position embeddings.
        """
        settings = self.settings
        slots = token_ids.shape[1]
        if slots > settings.max_position_embeddings:
            raise UsageError(
                f"{slots} token slots, but model.text.bert.max_position_embeddings is "
                f"{settings.max_position_embeddings}: lower data.max_tokens or take a longer text encoder"
            )
        embed = partial(
            Embed,
            features=settings.hidden_size,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(settings.initializer_range),
        )
        _, norm, drop = _layers(settings, self.dtype, self.param_dtype, train)
        # Rows are rounded after they are read: the gradient of a table then adds up in the precision of the table.
        words = embed(settings.vocab_size, name="word_embeddings")(token_ids).astype(self.dtype)
        rows = jnp.arange(slots) if positions is None else positions
        places = embed(settings.max_position_embeddings, name="position_embeddings")(rows).astype(self.dtype)
        token_type = embed(settings.type_vocab_size, name="token_type_embeddings")(jnp.zeros((), jnp.int32))
        x = drop()(norm(name="embeddings_norm")(words + token_type.astype(self.dtype) + places))

        attend = attend.reshape(*attend.shape[:1], -1, slots)
        states = [x]
        for index in range(settings.num_hidden_layers):
            layer = BertLayer(settings, self.dtype, self.param_dtype, name=f"layer_{index}")
            states.append(layer(states[-1], attend, train=train))
        Pooler(settings, self.param_dtype, name="pooler")()
        return states


def _layers(
    settings: BertSettings, dtype: DTypeLike, param_dtype: DTypeLike, train: bool
) -> tuple[Callable[..., Dense], Callable[..., LayerNorm], Callable[..., nn.Dropout]]:
    """The constructors of dense, layer-norm and dropout layers that all parts of BERT use."""
    dense = partial(
        Dense,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.initializers.normal(settings.initializer_range),
    )
    norm = partial(LayerNorm, epsilon=settings.layer_norm_eps, dtype=dtype, param_dtype=param_dtype)
    drop = partial(nn.Dropout, rate=settings.hidden_dropout_prob, deterministic=not train)
    return dense, norm, drop
