"""The templates of pages, and the numbers in them."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from afloc_jax.evaluation.report.numbers import interval, number, signed


def environment() -> Environment:
    """The environment of all pages: their templates lie beside the code, and text is escaped."""
    made = Environment(
        loader=PackageLoader("afloc_jax.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "interval": interval, "signed": signed}
    return made
