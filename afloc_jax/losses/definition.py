"""The published losses, written as their formulas. Tests compare the faster implementations with this one.

Sources: AFLoc (arXiv 2401.02044), equations of the report-level and local contrastive losses, which build on GLoRIA
(ICCV 2021). Arrays of size B x B x T x N are held in memory, so this is for small batches, tests and reading.

Notation: image b has N regions C_b, caption i has T_i valid text units W_i (words or sentences), width D.

Twins, which are not part of the published losses: two captions of a batch with the same text. At the report level they
are identical as drawn; at the other levels they share a sentence.

Hard negatives, which are not either: n captions made from each caption by changing its sentences, so that they are
false of its image. Only this image is compared with them, at the sentence level.

Contrasts of single units (see unit_contrast.py) are not either, nor is the sigmoid objective: that of SigLIP (Zhai et
al., ICCV 2023, arXiv 2303.15343), at each level.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Real, UInt32

from afloc_jax.losses.settings import PUBLISHED, LossSettings, Twins
from afloc_jax.vectors import norm

SMALLEST_NORM_PRODUCT = 1e-8  # published clamp of a cosine's denominator


def length_order(token_ids: Int[Array, "B L"]) -> Int[Array, " B"]:
    """The published order of a batch before it is split into contrast groups: the rows, longest caption first.

    The length of a caption is its number of tokens, [CLS] and [SEP] included; padding has id 0. Captions of the same
    length keep their order. (The release does not say which of them it takes first.)

    >>> length_order(jnp.array([[7, 8, 0], [7, 5, 8], [7, 8, 0], [7, 4, 8]])).tolist()
    [1, 3, 0, 2]
    """
    return jnp.argsort(-jnp.count_nonzero(token_ids, axis=1), stable=True)


def cosine(dot: Float[Array, "*S"], norm_product: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Cosine similarity from a dot product and the product of the two norms."""
    return dot / jnp.maximum(norm_product, SMALLEST_NORM_PRODUCT)


def report_similarity(
    images: Float[Array, "B D"], reports: Float[Array, "I D"], contrast_temperature: float
) -> Float[Array, "B I"]:
    """temp3 * cos(global image vector, report vector)."""
    return contrast_temperature * cosine(images @ reports.T, norm(images)[:, None] * norm(reports))


def region_attention(
    regions: Float[Array, "B N D"], units: Float[Array, "I T D"], counts: Int[Array, " I"], attention_temperature: float
) -> Float[Array, "B I N T"]:
    """The attention of each unit of caption i over the N regions of image b: weights that add up to 1.

        s = C_b W_i^T [N, T]        p = softmax of s over the units t        a = softmax of temp1 p over the regions n

    Units from counts[i] on are not valid: they get the weight 1/N everywhere.
    """
    valid = jnp.arange(units.shape[1]) < counts[:, None]  # [I, T]
    s = jnp.einsum("bnd,itd->bint", regions, units)
    # The softmax over units must not see padding. Without any valid unit p is 0 instead of NaN.
    hidden = jnp.where(valid[:, None, :], s, jnp.finfo(s.dtype).min)
    p = jnp.where(valid[:, None, :], jax.nn.softmax(hidden, axis=-1), 0)
    return jax.nn.softmax(attention_temperature * p, axis=-2)


def local_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "I T D"],
    counts: Int[Array, " I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B I"]:
    """Similarity of every image with every caption: Sim[b, i] = temp3 * log sum_t exp(temp2 * r_t).

    r_t is the relevance of unit t to image b:

        r_t = cos(W_i[t], v_t),  v_t = sum_n a_nt C_b[n]             region_pooling = "attention" (published)
        r_t = (1/k) log mean_n exp(k cos(C_b[n], W_i[t]))            region_pooling = "logsumexp", k = region_sharpness

    The sum over t is over the first `counts[i]` units of caption i, which are the valid ones. An empty caption is
    treated as one of one unit, so that its column is finite; `contrast` leaves the pair out.
    """
    counts = jnp.maximum(counts, 1)
    valid = jnp.arange(units.shape[1]) < counts[:, None]
    if settings.region_pooling == "attention":
        a = region_attention(regions, units, counts, settings.attention_temperature)
        v = jnp.einsum("bint,bnd->bitd", a, regions)
        r = cosine(jnp.einsum("itd,bitd->bit", units, v), norm(units) * norm(v))
    else:
        k = settings.region_sharpness
        s = jnp.einsum("bnd,itd->bint", regions, units)
        c = cosine(s, norm(regions)[:, None, :, None] * norm(units)[:, None, :])
        r = (jax.nn.logsumexp(k * c, axis=-2) - jnp.log(c.shape[-2])) / k
    pooled = jax.nn.logsumexp(settings.pooling_temperature * r, axis=-1, where=valid)
    return settings.contrast_temperature * pooled


def grouped_similarity(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G I T D"],
    counts: Int[Array, "G I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "G B I"]:
    """`local_similarity` within each of G contrast groups, one group after the other, in at least float32."""
    wide = jnp.promote_types(regions.dtype, jnp.float32)

    def one_group(group: tuple[Array, Array, Array]) -> Array:
        regions, units, counts = group
        return local_similarity(regions.astype(wide), units.astype(wide), counts, settings)

    similarity: Array = jax.lax.map(one_group, (regions, units, counts))
    return similarity


def identical(left: UInt32[Array, "*G B 2"], right: UInt32[Array, "*G I 2"]) -> Bool[Array, "*G B I"]:
    """Whether two texts are equal, from their hashes."""
    return _equal(left[..., :, None, :], right[..., None, :, :])


def share_a_sentence(left: UInt32[Array, "*G B S 2"], right: UInt32[Array, "*G I S 2"]) -> Bool[Array, "*G B I"]:
    """Whether two reports have a sentence in common, from the hashes of their sentences."""
    there = left.any(axis=-1)[..., :, None, :, None]
    equal = _equal(left[..., :, None, :, None, :], right[..., None, :, None, :, :])  # [*G, B, I, S, S]
    return (there & equal).any(axis=(-2, -1))


def is_stated(
    made: UInt32[Array, "*G B n S 2 2"], reports: UInt32[Array, "*G I S 2"], twins: Bool[Array, "*G B I"]
) -> Bool[Array, "*G B n S"]:
    """Whether a twin of report b, or report b itself, states what its n captions were made to say.

    A made sentence has two hashes, as read and in plain words; it is stated if either is that of a sentence.
    """
    wordings = made.reshape(*made.shape[:-4], -1, 2)
    equal = _equal(wordings[..., :, None, :, None, :], reports[..., None, :, None, :, :])  # [*G, B, I, n * S * 2, S]
    stated = (equal.any(axis=-1) & twins[..., None]).any(axis=-2)
    return stated.reshape(made.shape[:-1]).any(axis=-1)


def made_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "B n T D"],
    counts: Int[Array, "B n"],
    false: Bool[Array, "B n S"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B n"]:
    """`local_similarity` of each image with the captions made from its own, in at least float32.

    `false` says which sentences were changed and are not stated, of those that are there. A caption without any such
    sentence is no negative: its similarity is -inf.
    """
    wide = jnp.promote_types(regions.dtype, jnp.float32)

    def of_image(regions: Array, units: Array, counts: Array) -> Array:
        return local_similarity(regions[None], units, counts, settings)[0]

    similarity = jax.vmap(of_image)(regions.astype(wide), units.astype(wide), counts)
    return jnp.where(false.any(axis=-1), similarity, -jnp.inf)


def _equal(left: UInt32[Array, "*#S 2"], right: UInt32[Array, "*#S 2"]) -> Bool[Array, "*S"]:
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])


def contrast(
    similarity: Float[Array, "*G B B"],
    weights: Float[Array, "*G B"] | None = None,
    included: Bool[Array, "*G B"] | None = None,
    twins: Bool[Array, "*G B B"] | None = None,
    treatment: Twins = "negative",
    made: Float[Array, "*G B n"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both contrastive cross entropies over a square of similarities, `(image_to_text, text_to_image)`.

    `similarity[..., b, i]` compares image b with caption i of the same contrast group; the true pairs are on the
    diagonal. With q_i = weights_i / sum of weights over all pairs of all groups,

        image_to_text = sum_i q_i (log sum_j exp S_ij - S_ii)
        text_to_image = sum_j q_j (log sum_i exp S_ij - S_jj)

    `weights` are those of the pairs (by default all 1). (The release's `weight_matrix` has no effect there.)

    A pair that is not `included` is neither an example nor a negative for the others: the losses are those of the batch
    without it. They are 0 where no pair is included.

    `twins[..., i, j]`, symmetric, says that pairs i and j have the same text. By `treatment` they are

        "negative"   of each other, as published: `twins` is not read
        "mask"       neither: for twins i and j other than themselves, S_ij and S_ji leave the sums over j and over i
        "share"      both right: with n_i the number of twins of i, itself among them, S_ii becomes the mean of S_ij
                     over the n_i twins j, and S_jj the mean of S_ij over the n_j twins i

    `made[..., i, m]`, the similarities of image i with the captions made from caption i, join the sum over j:

        image_to_text = sum_i q_i (log (sum_j exp S_ij + sum_m exp made_im) - S_ii)

    >>> found = contrast(jnp.array([[9.0, 0.0], [0.0, 9.0]]))  # every image has picked its caption
    >>> guessed = contrast(jnp.zeros((2, 2)))  # log 2: one of two at random
    >>> [[round(float(loss), 3) for loss in losses] for losses in (found, guessed)]
    [[0.0, 0.0], [0.693, 0.693]]
    """
    if included is None:
        included = jnp.ones(similarity.shape[:-1], bool)
    share = shares(included, weights, similarity.dtype)
    # A pair that is left out sees only itself, so its cross entropy is finite; its share in the mean is 0.
    own = jnp.eye(similarity.shape[-1], dtype=bool)
    seen = included[..., :, None] & included[..., None, :]
    if twins is not None and treatment == "mask":
        seen = seen & ~twins
    # -inf is safe: the diagonal keeps each log-sum-exp finite, and the gradient at -inf is exactly 0.
    similarity = jnp.where(seen | own, similarity, -jnp.inf)
    right_caption = right_image = jnp.diagonal(similarity, axis1=-2, axis2=-1)
    if twins is not None and treatment == "share":
        right = own | (twins & seen)
        picked, number = jnp.where(right, similarity, 0), right.sum(axis=-1)
        right_caption, right_image = picked.sum(axis=-1) / number, picked.sum(axis=-2) / number
    captions = similarity if made is None else jnp.concatenate([similarity, made], axis=-1)
    image_to_text = jax.nn.logsumexp(captions, axis=-1) - right_caption
    text_to_image = jax.nn.logsumexp(similarity, axis=-2) - right_image
    return (share * image_to_text).sum(), (share * text_to_image).sum()


def shares(included: Bool[Array, "*S"], weights: Float[Array, "*S"] | None, dtype: DTypeLike) -> Float[Array, "*S"]:
    """The share q of each pair in the means: they add up to 1, and pairs that are not included get 0."""
    share = jnp.where(included, 1 if weights is None else weights, 0).astype(dtype)
    total = share.sum()
    return share / jnp.where(total > 0, total, 1)


@flax.struct.dataclass
class Scale:
    """The learned parameters of a level's sigmoid objective: t' and b of `sigmoid_contrast`."""

    log_temperature: Float[Array, ""]
    bias: Float[Array, ""]

    @classmethod
    def initial(cls, settings: LossSettings) -> "Scale":
        return cls(jnp.log(settings.contrast_temperature), jnp.asarray(settings.sigmoid_bias))

    def logits(self, relevance: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """exp(t') x + b."""
        return jnp.exp(self.log_temperature) * relevance + self.bias


def mean_relevance(
    similarity: Float[Array, "*S"], counts: Real[Array, "*#S"], settings: LossSettings = PUBLISHED
) -> Float[Array, "*S"]:
    """The relevance x of captions to images on the scale of a cosine, between -1 and 1, from `local_similarity`:

        x = (1 / temp2) log ((1 / T_i) sum_t exp(temp2 r_t)) = (S / temp3 - log T_i) / temp2

    `counts` are the units T of the captions. The sum over them would grow with their number, which a bias that all
    captions share cannot follow.
    """
    logarithm = jnp.log(jnp.maximum(counts, 1)).astype(similarity.dtype)
    return (similarity / settings.contrast_temperature - logarithm) / settings.pooling_temperature


def sigmoid_contrast(
    relevance: Float[Array, "*G B B"],
    scale: Scale,
    weights: Float[Array, "*G B"] | None = None,
    included: Bool[Array, "*G B"] | None = None,
    twins: Bool[Array, "*G B B"] | None = None,
    treatment: Twins = "negative",
    made: Float[Array, "*G B n"] | None = None,
) -> Float[Array, ""]:
    """The pairwise sigmoid loss (SigLIP, arXiv 2303.15343, algorithm 1) over a square of relevances x.

    With z_ij = 1 for a right pair and -1 for a wrong one, and q_i as in `contrast` (1 / B without weights),

        loss = sum_ij (q_i + q_j) / 2 log(1 + exp(-z_ij (exp(t') x_ij + b)))

    `weights`, `included` and `twins` are those of `contrast`. Twins i and j are wrong pairs by "negative", and right
    ones by "share"; by "mask" x_ij and x_ji leave the sum.

    `made[..., i, m]`, the relevances to image i of the captions made from caption i (-inf where one is no negative),
    are wrong pairs:

        loss += sum_i q_i sum_m log(1 + exp(exp(t') made_im + b))

    >>> scale = Scale(jnp.log(10.0), jnp.array(-10.0))
    >>> found = sigmoid_contrast(jnp.array([[2.0, 0.0], [0.0, 2.0]]), scale)
    >>> start = sigmoid_contrast(jnp.zeros((2, 2)), scale)  # every pair is taken to be wrong
    >>> [round(float(loss), 3) for loss in (found, start)]
    [0.0, 10.0]
    """
    if included is None:
        included = jnp.ones(relevance.shape[:-1], bool)
    share, own = shares(included, weights, relevance.dtype), jnp.eye(relevance.shape[-1], dtype=bool)
    seen, right = included[..., :, None] & included[..., None, :], own
    if twins is not None and treatment == "mask":
        seen = seen & (own | ~twins)
    if twins is not None and treatment == "share":
        right = own | twins
    losses = jax.nn.softplus(jnp.where(right, -1, 1) * scale.logits(relevance))
    loss = (jnp.where(seen, share[..., :, None] + share[..., None, :], 0) / 2 * losses).sum()
    return loss if made is None else loss + made_sigmoid(made, scale, share)


def made_sigmoid(made: Float[Array, "*G B n"], scale: Scale, share: Float[Array, "*G B"]) -> Float[Array, ""]:
    """What hard negatives add to `sigmoid_contrast`."""
    there = made > -jnp.inf
    losses = jax.nn.softplus(scale.logits(jnp.where(there, made, 0)))
    return (share[..., None] * jnp.where(there, losses, 0)).sum()


def unit_relevance(
    regions: Float[Array, "B N D"], units: Float[Array, "I T D"], settings: LossSettings = PUBLISHED
) -> Float[Array, "B I T"]:
    """The relevance r of single text units to every image, with c_n = cos(C_b[n], w) and k = region_sharpness:

    r = (1/k) log mean_n exp(k c_n)                                     region_pooling = "logsumexp"
    r = cos(w, sum_n a_n C_b[n] / |C_b[n]|),  a = softmax of k c over n     "similarity" (RadZero, arXiv 2504.07416)
    """
    k, norms = settings.region_sharpness, norm(regions)
    c = cosine(jnp.einsum("bnd,itd->bitn", regions, units), norms[:, None, None] * norm(units)[:, :, None])
    if settings.region_pooling == "logsumexp":
        return (jax.nn.logsumexp(k * c, axis=-1) - jnp.log(c.shape[-1])) / k
    directions = regions / jnp.maximum(norms, SMALLEST_NORM_PRODUCT)[..., None]
    v = jnp.einsum("bitn,bnd->bitd", jax.nn.softmax(k * c, axis=-1), directions)
    return cosine(jnp.einsum("itd,bitd->bit", units, v), norm(units) * norm(v))


def multi_positive_contrast(
    relevance: Float[Array, "B B T"],
    counts: Int[Array, " B"],
    contrast_temperature: float,
    weights: Float[Array, " B"] | None = None,
    masked: Bool[Array, "B B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both cross entropies of units that are positives of one image together, `(image_to_text, text_to_image)`.

    It is the MP-NCE loss of RadZero (arXiv 2504.07416), after UniCLIP (arXiv 2209.13430). With l_bjt = temp3 r of
    unit t of caption j to image b, q_it the weight of caption i over the sum of weights of all units, and t from 1 to
    counts[i] - 1 (`[CLS]` is left out),

        text_to_image = sum_it q_it (log sum_b exp l_bit - l_iit)
        image_to_text = sum_it q_it (log (exp l_iit + sum over captions j other than i, units s, of exp l_ijs) - l_iit)

    The other units of caption i are no negatives of unit t. A pair whose caption is empty is left out. `masked[i, j]`,
    symmetric, leaves image j out of the sum over b for the units of caption i, and units of caption j for image i.
    """
    slot, own = jnp.arange(relevance.shape[2]), jnp.eye(len(counts), dtype=bool)
    there = (slot > 0) & (slot < counts[:, None])  # [i, t]
    share = jnp.where(there, 1 if weights is None else weights[:, None], 0).astype(relevance.dtype)
    total = share.sum()
    share = share / jnp.where(total > 0, total, 1)
    logits, included = contrast_temperature * relevance, counts > 0
    seen = included[:, None] & included & (True if masked is None else ~masked)
    of_images = jnp.where((seen | own)[:, :, None], logits, -jnp.inf)
    right = jnp.einsum("iit->it", logits)
    others = jnp.where((seen & ~own)[:, :, None] & there, logits, jnp.finfo(logits.dtype).min)  # [i, j, s]
    of_texts = jnp.logaddexp(right, jax.nn.logsumexp(others, axis=(1, 2))[:, None])
    text_to_image = (share * (jax.nn.logsumexp(of_images, axis=0) - right)).sum()
    return (share * (of_texts - right)).sum(), text_to_image
