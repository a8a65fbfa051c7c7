"""The inputs of an exported AFLoc model, from image files and prompts. Needs: pip install numpy pillow tokenizers

afloc_localize.py beside it is the command that writes heat maps and boxes.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read(folder: str | Path, images: Sequence[str | Path], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """The named inputs of an exported model for B pairs of an image and a prompt.

    `folder` is the export. Returns `image` [B, S, S] uint8 and the arrays of `tokenize`.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    squares = np.stack([read_image(path, config["image_size"]) for path in images])
    return {"image": squares, **tokenize(folder, prompts, config["max_tokens"])}


def read_pixels(path: str | Path) -> np.ndarray:
    """The grey values [height, width] of an image file in 0 ... 255, turned as its EXIF data say."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")))
    if picture.mode[0] in "IF":  # more than 8 bits: scaled by its own minimum and maximum
        deep = np.asarray(picture).astype(np.float64)
        return np.rint((deep - deep.min()) * (255 / max(deep.max() - deep.min(), 1e-12)))
    grey = picture.getchannel("L") if picture.mode in ("L", "LA") else picture.convert("RGB").convert("L")
    return np.asarray(grey).astype(np.float64)


def place(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """Where an image lies in its square: top, left, rows and columns."""
    scale = side / max(height, width)
    rows = side if height >= width else max(1, int(height * scale))
    columns = side if width > height else max(1, int(width * scale))
    return (side - rows) // 2, (side - columns) // 2, rows, columns


def read_image(path: str | Path, side: int) -> np.ndarray:
    """An image file as a grey, zero-padded square [side, side] uint8; area interpolation of the longest side."""
    pixels = read_pixels(path)
    height, width = pixels.shape
    top, left, rows, columns = place(height, width, side)
    shrinks = max(height, width) >= side
    inner = area_matrix(height, rows, shrinks) @ pixels @ area_matrix(width, columns, shrinks).T
    square = np.zeros((side, side), np.uint8)
    halves = (height, width) == (2 * rows, 2 * columns)  # OpenCV rounds ties up here, not to even
    square[top : top + rows, left : left + columns] = np.floor(inner + 0.5) if halves else np.rint(inner)
    return square


def area_matrix(size: int, target: int, shrinks: bool) -> np.ndarray:
    """OpenCV's area interpolation of one axis as a matrix [target, size]: coverage to shrink, linear to enlarge."""
    scale, cell, pixel = size / target, np.arange(target)[:, None], np.arange(size)
    if shrinks:
        covered = np.minimum((cell + 1) * scale, pixel + 1) - np.maximum(cell * scale, pixel)
        return np.maximum(covered, 0) / scale
    left = np.floor(cell * scale)
    share = np.maximum(cell + 1 - (left + 1) / scale, 0) % 1
    return np.maximum(1 - np.abs(np.minimum(left + share, size - 1) - pixel), 0)


def tokenize(folder: str | Path, prompts: Sequence[str], slots: int) -> dict[str, np.ndarray]:
    """The arrays token_ids, word_ids, sentence_ids [B, slots] and word_count, sentence_count [B] of prompts, int32."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    rows = [_token_row(tokenizer, clean_prompt(prompt), slots) for prompt in prompts]
    return {name: np.array([row[name] for row in rows], np.int32) for name in rows[0]}


# A word: letters with their combining marks, and numbers with their decimal point.
_MARKS = "".join(
    character for character in map(chr, range(0x300, 0x20000)) if unicodedata.category(character)[0] == "M"
)
_LETTERS = rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*"
_WORD = rf"{_LETTERS}(?:(?<=\d)[.,](?=\d){_LETTERS})*"
_NUMBERS = (
    (r"(?<=\d)[\u00b7\u066b](?=\d)", "."),  # other decimal points
    (r"(?<=\d)(\s*[mcd]?m)?\s*[x\u00d7]\s*(?=[.]?\d)", r"\1 x "),  # "2x1.5"
    (r"(?<![\w.])[.](?=\d)", "0."),  # ".5"
    (r"(\d[.,]\d+)(?=[^\W\d_])", r"\1 "),  # "1.5cm"
)


_FRACTION = re.compile(r"(?:(\d+)\s?)?([\u00bc-\u00be\u2150-\u215e\u2189])")  # one character, as in "1½"


def _as_decimal(fraction: re.Match) -> str:
    return f"{int(fraction[1] or 0) + unicodedata.numeric(fraction[2]):.6g}"


def clean_prompt(text: str) -> str:
    """The prompt as lower-case words, its sentences joined by ". ". Raises ValueError if no word is left."""
    text = unicodedata.normalize("NFKD", _FRACTION.sub(_as_decimal, text.lower()))
    text = unicodedata.normalize("NFC", re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", text))  # "café" to "cafe"
    for pattern, replacement in _NUMBERS:
        text = re.sub(pattern, replacement, text)
    sentences = re.split(r"[!?;\n]+|\.(?=\s|$)", text)
    kept = [" ".join(re.findall(_WORD, sentence)) for sentence in sentences]
    kept = [sentence for sentence in kept if any(character.isalpha() for character in sentence)]
    if not kept:
        raise ValueError(f"the prompt {text!r} holds no word; write what to look for")
    return ". ".join(kept)


def _token_row(tokenizer, text: str, slots: int) -> dict[str, list[int] | int]:
    """The token ids of one text, the word of each piece and the sentence of each word, padded to `slots`."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    decimals = {match.start() + 1 for match in re.finditer(r"\d\.(?=\d)", text)}
    ids = [tokenizer.token_to_id("[CLS]"), *encoding.ids[: slots - 2], tokenizer.token_to_id("[SEP]")]
    word_of, is_period = [0], [False]  # [CLS] is word 0
    for index, (piece, (begin, _)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
        if index == slots - 2:
            break
        if index == 0 or not piece.startswith("##"):
            is_period.append(piece == "." and begin not in decimals)
        word_of.append(len(is_period) - 1)
    word_of.append(len(is_period))  # [SEP] is the last word
    sentence, sentence_of, last = 0, [0], len(is_period) - 1
    for word in range(1, last + 1):
        # The word before [SEP] belongs to the last sentence even if it is a period. Alone it is no sentence.
        member = not is_period[word] or word == last
        lonely = word == last and is_period[word] and not all(is_period[1:])
        if member and (word == 1 or is_period[word - 1]) and not lonely:
            sentence += 1
        sentence_of.append(sentence if member else -1)
    sentence_of.append(sentence + 1)
    return {
        "token_ids": ids + [0] * (slots - len(ids)),
        "word_ids": word_of + [-1] * (slots - len(word_of)),
        "sentence_ids": sentence_of + [-1] * (slots - len(sentence_of)),
        "sentence_count": sentence + 1,
        "word_count": last + 1,
    }


if __name__ == "__main__":  # what it did before afloc_localize.py was there
    from afloc_localize import main

    main()
