"""The published losses as a plain PyTorch loop over captions, written from the formula: an independent oracle.

It is also what benchmarks/loss_tiled.py compares with, so it is written the way a PyTorch user would for speed: one
batched matrix product over all images per caption, captions cut to their true length, gradients by autograd.
"""

import torch
from torch.nn.functional import cross_entropy

CLAMP = 1e-8


def local_similarities(regions, units, counts, temperatures, pooling="attention", sharpness=10.0):
    """regions [B, N, D], units [B, T, D], counts: B ints -> similarities [B images, B captions]."""
    attention_temperature, pooling_temperature, contrast_temperature = temperatures
    columns = []
    for caption, count in zip(units, counts, strict=True):
        words = caption[: int(count)]  # [T, D]
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
        columns.append((pooling_temperature * relevance).exp().sum(dim=1).log())
    return contrast_temperature * torch.stack(columns, dim=1)


def report_similarities(images, reports, contrast_temperature):
    """images [B, D], reports [B, D] -> similarities [B, B]."""
    norms = images.norm(dim=-1, keepdim=True) @ reports.norm(dim=-1, keepdim=True).T
    return contrast_temperature * (images @ reports.T) / norms.clamp(min=CLAMP)


def cross_entropies(similarities, weights=None):
    """(image to text, text to image), each the mean over the batch; `weights` [B] as PyTorch's class weights."""
    labels = torch.arange(len(similarities))
    return (
        cross_entropy(similarities, labels, weight=weights),
        cross_entropy(similarities.T, labels, weight=weights),
    )
