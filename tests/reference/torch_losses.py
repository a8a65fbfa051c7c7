"""The published losses as a plain PyTorch loop over captions, written from the formula: an independent oracle.

benchmarks/loss_tiled.py compares with both loops: `local_similarities`, written for speed (features region by region,
one batched product over all images per caption), and `channel_first_similarities`, which takes the maps as a PyTorch
convolution leaves them and turns them for every caption, as the published loop does. Captions are cut to their true
length and gradients come from autograd in both.
"""

import torch
from torch.nn.functional import cross_entropy

CLAMP = 1e-8


def local_similarities(regions, units, counts, temperatures, pooling="attention", sharpness=10.0):
    """regions [B, N, D], units [B, T, D], counts: B ints -> similarities [B images, B captions]."""
    attention_temperature, pooling_temperature, contrast_temperature = temperatures
    columns = [
        local_column(regions, caption[: int(count)], attention_temperature, pooling_temperature, pooling, sharpness)
        for caption, count in zip(units, counts, strict=True)
    ]
    return contrast_temperature * torch.stack(columns, dim=1)


def local_column(regions, words, attention_temperature, pooling_temperature, pooling="attention", sharpness=10.0):
    """All images against one caption, before the contrast temperature: regions [B, N, D], words [T, D] -> [B]."""
    word_norms = words.norm(dim=-1)  # [T]
    scores = regions @ words.T  # [B, N, T]
    if pooling == "attention":
        over_words = scores.softmax(dim=2)
        over_regions = (attention_temperature * over_words).softmax(dim=1)
        context = over_regions.transpose(1, 2) @ regions  # [B, T, D]
        dots = (context * words).sum(dim=-1)
        relevance = dots / (context.norm(dim=-1) * word_norms).clamp(min=CLAMP)  # [B, T]
    else:
        cosines = scores / (regions.norm(dim=-1)[:, :, None] * word_norms).clamp(min=CLAMP)
        relevance = ((sharpness * cosines).exp().mean(dim=1)).log() / sharpness
    return (pooling_temperature * relevance).exp().sum(dim=1).log()


def channel_first_similarities(maps, units, counts, temperatures):
    """maps [B, D, H, W], units [B, D, T], counts: B ints -> similarities [B images, B captions]."""
    attention_temperature, pooling_temperature, contrast_temperature = temperatures
    images = maps.shape[0]
    columns = []
    for caption, count in zip(units, counts, strict=True):
        words = caption[None, :, : int(count)].repeat(images, 1, 1)  # [B, D, T]
        features = maps.flatten(2)  # [B, D, N]
        scores = torch.bmm(features.transpose(1, 2).contiguous(), words)  # [B, N, T]
        over_words = scores.softmax(dim=2).transpose(1, 2).contiguous()  # [B, T, N]
        over_regions = (attention_temperature * over_words).softmax(dim=2)
        context = torch.bmm(features, over_regions.transpose(1, 2).contiguous())  # [B, D, T]
        relevance = torch.cosine_similarity(words, context, dim=1, eps=CLAMP)  # [B, T]
        columns.append((pooling_temperature * relevance).exp().sum(dim=1).log())
    return contrast_temperature * torch.stack(columns, dim=1)


def report_similarities(images, reports, contrast_temperature):
    """images [B, D], reports [B, D] -> similarities [B, B]."""
    norms = images.norm(dim=-1, keepdim=True) @ reports.norm(dim=-1, keepdim=True).T
    return contrast_temperature * (images @ reports.T) / norms.clamp(min=CLAMP)


def cross_entropies(similarities, weights=None):
    """(image to text, text to image), each the mean over the batch; `weights` [B] as PyTorch's class weights."""
    labels = torch.arange(len(similarities), device=similarities.device)
    return (
        cross_entropy(similarities, labels, weight=weights),
        cross_entropy(similarities.T, labels, weight=weights),
    )
