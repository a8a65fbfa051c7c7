"""What notebooks show of results: HTML that needs no other file, and holds no name of a file or a patient."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from afloc_jax.inference.figures import Caption, hex_colours, short
from afloc_jax.inference.overlays import jpeg_uri

SIDE = 480  # pixels of a picture
_MOST = 12  # results of a list

_FIGURE = Markup(
    '<figure style="display:inline-block;vertical-align:top;margin:0 12px 12px 0;max-width:{width}px">'
    '<img src="{source}" alt="{alt}" width="{width}" height="{height}" style="max-width:100%;height:auto">'
    '<figcaption style="line-height:1.4"><strong>{title}</strong><br>{facts}{bar}{warnings}</figcaption></figure>'
)
_BAR = Markup(
    '<div style="display:flex;align-items:center;gap:6px"><span>threshold {low}</span>'
    '<span aria-hidden="true" style="flex:1;height:10px;background:linear-gradient(to right,{colours})"></span>'
    "<span>{high}</span></div>"
)
_WARNING = Markup('<div role="note">Warning: {}</div>')

Shown = TypeVar("Shown")


def figure_html(picture: UInt8[np.ndarray, "h w 3"], caption: Caption, alt: str) -> str:
    """A picture with its caption as text below it.

    Args:
        picture: red, green and blue.
        caption: the text.
        alt: what the picture shows, for those who do not see it.
    """
    height, width = picture.shape[:2]
    bar = _BAR.format(low=short(caption.lowest), high=short(caption.highest), colours=Markup(",".join(hex_colours(8))))
    html = _FIGURE.format(
        source=jpeg_uri(np.ascontiguousarray(picture[..., ::-1])),
        alt=alt,
        width=width,
        height=height,
        title=caption.title,
        facts=" \u00b7 ".join(caption.facts),
        bar=bar,
        warnings=Markup("").join(_WARNING.format(text) for text in caption.warnings),
    )
    return str(html)


class Gallery(list[Shown]):
    """A list whose items a notebook shows as they show themselves, the first 12 of them.

    >>> class Word(str):
    ...     def _repr_html_(self):
    ...         return f"<b>{self}</b>"
    >>> Gallery([Word("left"), Word("right")])._repr_html_()
    '<div><b>left</b><b>right</b></div>'
    """

    def _repr_html_(self) -> str | None:
        shown = [show() for one in self[:_MOST] if (show := getattr(one, "_repr_html_", None))]
        parts = [part for part in shown if part]
        if not parts:
            return None
        more = f"<p>and {len(self) - _MOST:,} more</p>" if len(self) > _MOST else ""
        return f"<div>{''.join(parts)}{more}</div>"


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, warnings: Sequence[str] = ()) -> str:
    """A table whose first column names the rows."""
    columns = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in head)
    lines = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row[0], Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
        )
        for row in rows
    )
    table = Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
    return str(table.format(caption, columns, lines) + Markup("").join(_WARNING.format(text) for text in warnings))
