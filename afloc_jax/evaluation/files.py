"""Result files: each appears whole or not at all."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.files import write_whole


def write_folder(out: str | Path, files: Mapping[str, str | bytes]) -> None:
    """Write several files into a folder, made if absent. Raises UserError when it cannot be written."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(out / name, content)
    except OSError as error:
        raise UserError(f"{out}: cannot write the results ({error.strerror or error})") from None


def write_pictures(out: Path, arrays: Mapping[str, Any], described: Any) -> None:
    """examples.npz (arrays) and examples.json (what they are). Files appear whole or not at all."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    write_folder(out, {"examples.npz": packed.getvalue(), "examples.json": text})


def remove_examples(out: Path) -> None:
    """Those that an earlier evaluation left in a folder of results, if any."""
    for name in ("examples.npz", "examples.json"):
        (out / name).unlink(missing_ok=True)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV. NaN and None become empty cells; floats keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def json_text(content: Any) -> str:
    """Readable JSON; raises `ValueError` for NaN, which JSON does not know."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def shown(interval: Mapping[str, float | None]) -> str:
    """A mean with its limits for a table: `0.812 [0.790, 0.833]`, or `-` where it is undefined."""
    if interval["mean"] is None:
        return "-"
    limits = ["-" if interval[part] is None else f"{interval[part]:.3f}" for part in ("lower", "upper")]
    return f"{interval['mean']:.3f} [{', '.join(limits)}]"


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
