"""What an export says of itself: README.md, the model card, and the terms of weights and scripts."""

import afloc_jax
from afloc_jax.export.formats import Format
from afloc_jax.export.source import Source
from afloc_jax.files import Path, user_path
from afloc_jax.weights.card import licence_of, render_card
from afloc_jax.weights.folder import CARD

MODEL_CARD, LICENCE = "MODEL_CARD.md", "LICENSE"

_README = """\
# {model}, as {format}

{about}, written by afloc_jax. Its scripts need
`pip install {packages}`.

{use}
    python check/check.py

compares the outputs of this folder with those of afloc_jax. [{card}]({card}) says what the model was
trained on, what it is for and what not, and its results. [{licence}]({licence}) has the terms of the weights and of
the scripts.
"""
_TERMS = """\
The weights:

{weights}

The Python files in this folder are part of afloc_jax, under the licence below.

{scripts}"""


def write_readme(source: Source, folder: Path, name: str, format: Format) -> None:
    """Writes README.md, the model card and the licence into the folder of an export.

    A format without `use` is a model folder, whose README.md is the card.
    """
    card = source.folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else render_card(source.config)
    (folder / (MODEL_CARD if format.use else CARD)).write_text(text, encoding="utf-8")
    if format.use:
        readme = _README.format(
            model=source.config.name,
            format=name,
            about=f"{format.about[0].upper()}{format.about[1:]}",
            packages=" ".join(format.runtime),
            use=format.use,
            card=MODEL_CARD,
            licence=LICENCE,
        )
        (folder / CARD).write_text(readme, encoding="utf-8")
    terms = _TERMS.format(weights=licence_of(source.config), scripts=_licence_of_scripts())
    (folder / LICENCE).write_text(terms, encoding="utf-8")


def _licence_of_scripts() -> str:
    """The licence of this program: in the package, where it was installed from a wheel, and beside it in a clone."""
    package = user_path(afloc_jax.__file__).parent
    inside = package / LICENCE
    return str((inside if inside.is_file() else package.parent / LICENCE).read_text(encoding="utf-8"))
