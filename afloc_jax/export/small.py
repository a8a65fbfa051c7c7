"""Export as a small model folder: weights in float16, and a vocabulary cut to the words that are needed."""

import dataclasses
import shutil
from collections.abc import Collection, Iterable

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.export.source import Source
from afloc_jax.files import AnyPath, Path
from afloc_jax.weights import torch_names
from afloc_jax.weights.calibration import CALIBRATION
from afloc_jax.weights.folder import write_parts
from data_pipelines.tokens import SPECIAL_TOKENS, from_vocabulary
from data_pipelines.vocabulary import seen_pieces, words_in

_EMBEDDINGS = "word_embeddings.weight"  # [entries of the vocabulary, width]


def read_words(files: Iterable[AnyPath]) -> frozenset[str]:
    """The words of text files. Raises UserError for one that cannot be read, or has no word."""
    found: frozenset[str] = frozenset()
    for file in files:
        words = words_in(file, "--words")
        if not words:
            raise UserError(f"{file} has no word; write the words that the vocabulary keeps")
        found |= words
    return found


def small(source: Source, words: Collection[str] = ()) -> Source:
    """The source with weights that float16 can hold and, where there are words, with a vocabulary cut to their pieces.

    One of the words has the pieces that it had. Other words are unknown, or made of the pieces that are left.

    Raises UserError for weights beyond the range of float16.
    """
    state = source.state_dict()
    config, tokenizer = source.config, source.tokenizer
    if words:
        vocabulary = tokenizer.get_vocab()
        kept = seen_pieces(tokenizer, [list(words)]) | (set(SPECIAL_TOKENS) & vocabulary.keys())
        pieces = sorted(kept, key=vocabulary.__getitem__)  # [PAD] stays the first
        if not any(piece.startswith("##") for piece in pieces):  # a WordPiece vocabulary has at least one
            pieces.append(min((piece for piece in vocabulary if piece.startswith("##")), key=vocabulary.__getitem__))
        name = next(name for name in state if name.endswith(_EMBEDDINGS))
        state = {**state, name: state[name][[vocabulary[piece] for piece in pieces]]}
        tokenizer = from_vocabulary(pieces, getattr(tokenizer.normalizer, "strip_accents", None))
        text = config.architecture.text
        text = dataclasses.replace(text, bert={**text.bert, "vocab_size": len(pieces)})
        unseen = None if config.unseen_pieces is None else config.unseen_pieces & frozenset(pieces)
        architecture = dataclasses.replace(config.architecture, text=text)
        config = dataclasses.replace(config, architecture=architecture, unseen_pieces=unseen)
    for name, value in state.items():
        if np.abs(value).max(initial=0) > np.finfo(np.float16).max and value.dtype.kind == "f":
            raise UserError(f"{source.folder}: {name} has values that float16 cannot hold")
    rounded = {name: _half(value).astype(value.dtype) for name, value in state.items()}
    variables = torch_names.from_torch(rounded, config.architecture)
    return dataclasses.replace(source, config=config, tokenizer=tokenizer, variables=variables)


def write(source: Source, folder: Path) -> None:
    """Writes a source that `small` made into an empty folder."""
    tensors = {name: np.ascontiguousarray(_half(value)) for name, value in source.state_dict().items()}
    write_parts(folder, tensors, source.config, source.tokenizer)
    if (source.folder / CALIBRATION).is_file():
        shutil.copyfile(source.folder / CALIBRATION, folder / CALIBRATION)


def _half(value: np.ndarray) -> np.ndarray:
    """Numbers as float16; whole numbers, which count batches, as they are."""
    return value.astype(np.float16) if value.dtype.kind == "f" else value
