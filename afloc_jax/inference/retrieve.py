"""Retrieval of images for a text and of texts for an image, from files, for `afloc retrieve`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, csv_text, user_path, write_whole
from afloc_jax.inference.files import check_prompts, make_folder, warn_of_drawings
from afloc_jax.inference.films import Reading, films
from afloc_jax.inference.inputs import list_images
from afloc_jax.inference.model import load
from afloc_jax.inference.prompt_reading import report_readings
from afloc_jax.tables import read_text
from data_pipelines.what_images import warning_on_drawings

COLUMNS = ("direction", "query", "rank", "similarity", "found")


@dataclass(frozen=True)
class Match:
    """One line of a result. `similarity` is the cosine of the global image embedding and the report embedding."""

    direction: str  # "text_to_image" or "image_to_text"
    query: str
    rank: int
    similarity: float
    found: str


def retrieve_files(
    model: AnyPath,
    images: AnyPath,
    queries: Sequence[str] = (),
    texts: AnyPath | None = None,
    top: int = 5,
    out: AnyPath | None = None,
    compatible: bool = False,
    strict: bool = False,
) -> tuple[list[Match], list[str]]:
    """The most similar images of a folder for every query, and the most similar texts of a file for every image.

    Args:
        model: the model folder.
        images: a folder of images, with its subfolders, a pattern, or one image, see `inputs.list_images`.
        queries: texts to find images for.
        texts: a file with one text a line, from which texts are found for each image.
        top: the number of results per query.
        out: a CSV file (`COLUMNS`) for all results; None writes none.
        compatible: clean texts as the published release does.
        strict: refuse queries that the model does not understand as a whole; else they are named on stderr. The lines
            of `texts`, which may be reports, are neither refused nor named.

    Returns:
        The results, those of the queries first, and the error messages of images that could not be read.

    Raises:
        UsageError: there are neither queries nor texts, a text is empty, there is no image, or with `strict` a query
            has a fault.
        UserError: no image can be read.
    """
    lines = _read_lines(user_path(texts, "--texts")) if texts else []
    if not queries and not lines:
        raise UsageError("nothing to retrieve; give --query TEXT to find images, or --texts FILE to find texts")
    check_prompts([*queries, *lines], compatible)
    if top < 1:
        raise UsageError(f"--top {top}: must be at least 1")
    paths = _image_files(images)
    target = None if out is None else user_path(out, "--out")
    if target is not None:
        make_folder(target.parent)
    loaded = load(model)
    report_readings(loaded.examine(queries, compatible=compatible), strict)
    failed: list[str] = []
    names: list[Path] = []
    embedded, not_drawn = [], 0
    for batch in films(loaded, [(path, Reading()) for path in paths], failed):
        names += [film.path for film in batch]
        sizes = [(film.geometry.height, film.geometry.width) for film in batch]
        not_drawn += sum(bool(warning_on_drawings(loaded.config.trained_on, *size)) for size in sizes)
        embedded.append(np.asarray(loaded.embed_squares(np.stack([film.square for film in batch])).whole))
    if not names:
        raise UserError(f"none of the {len(paths)} images in {images} can be read")
    warn_of_drawings(not_drawn, len(names))
    reports = np.asarray(loaded.embed_texts([*queries, *lines], compatible=compatible).report)
    similarity = cosine_similarity(np.concatenate(embedded), reports)
    shown = [str(path) for path in names]
    answers = _ranked("text_to_image", queries, shown, similarity[:, : len(queries)].T, top)
    if lines:
        answers += _ranked("image_to_text", shown, lines, similarity[:, len(queries) :], top)
    if target is not None:
        rows = [(m.direction, m.query, m.rank, f"{m.similarity:.6f}", m.found) for m in answers]
        write_whole(target, csv_text(COLUMNS, rows))
    return answers, failed


def _ranked(
    direction: str, queries: Sequence[str], items: Sequence[str], similarity: Float[np.ndarray, "Q N"], top: int
) -> list[Match]:
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    return [
        Match(direction, query, rank, float(similarity[q, i]), items[i])
        for q, query in enumerate(queries)
        for rank, i in enumerate(best[q], start=1)
    ]


def cosine_similarity(images: Float[np.ndarray, "I D"], texts: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "I T"]:
    """The cosine of every image with every text; 0 for a zero vector.

    It is computed in float64. In the precision of the model (`vectors.unit_norm`) more similarities would be tied.
    """

    def unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return np.asarray(unit(images) @ unit(texts).T)


def _image_files(images: AnyPath) -> list[Path]:
    found = list_images([images], "--images")
    if found[0].singly and not found[0].path.is_file():
        raise UsageError(f"--images {images}: no such folder")
    return [one.path for one in found]


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except UserError as error:
        raise UsageError(f"--texts {error}") from None
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise UsageError(f"--texts {path}: holds no text; write one a line")
    return found
