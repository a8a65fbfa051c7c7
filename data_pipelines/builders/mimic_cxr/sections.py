"""The sections of MIMIC-CXR reports, by the rules of its authors' section parser (MIT-LCP/mimic-cxr).

The parser's two tables of about fifty single reports, which are corrected by study number, are not reproduced here.
"""

import re

_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s")
_NAMES = {
    "conclusion": "impression",
    "findings and impression": "impression",
    "comparisons": "comparison",
    "comparison exam": "comparison",
    "comparison film": "comparison",
    "reference exam": "comparison",
    "comparision": "comparison",
    "comparsion": "comparison",
    "comparrison": "comparison",
    "comparisions": "comparison",
    "clinical information": "history",
    "pfi": "history",
    "reason for examination": "indication",
    "reason for exam": "indication",
    "clinical indication": "indication",
    "idication": "indication",
    "exam": "examination",
    "type of examination": "examination",
    "recommendation(s)": "recommendations",
    "recommendation": "recommendations",
    "wetread": "wet read",
    "finding": "findings",
    "reference findings": "findings",
} | dict.fromkeys(
    ("ndication", "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion",
     "mpression", "impession", "findings/impression", "findings/ impression"),
    "impression",
) | dict.fromkeys(("findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"), "findings")  # fmt: skip
_KEPT = ("impression", "findings", "history", "comparison", "addendum")  # a heading with one of these gets its name
_VIEWS = (
    "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and",
    "two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window", "frontal upright",
    "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip
_OWN_NAMES = frozenset(
    {"preamble", "indication", "examination", "technique", "notification", "date", "comment", "wet read", "full report",
     "recommendations", *_KEPT}
)  # fmt: skip


def report_sections(text: str) -> dict[str, str]:
    """The sections of a report: name -> text.

    Headings are in upper case, at the start of a line after one space. A heading that only names views ("CHEST, TWO
    VIEWS:") begins the findings. Empty findings and impressions are ignored; of several, the last one is taken. If a
    report has neither, the text of its last section after the first blank line is its "last_paragraph".
    """
    parts = _split(text)
    parts = [(name, body) for name, body in parts if body.strip() or name not in ("impression", "findings")]
    if parts and not {"impression", "findings"} & {name for name, _ in parts}:
        name, body = parts[-1]
        first, blank, rest = body.partition("\n \n")
        if blank:
            parts[-1:] = [(name, first), ("last_paragraph", rest)]
    return {name: body.strip() for name, body in parts if body.strip()}


def _split(text: str) -> list[tuple[str, str]]:
    heading = _HEADING.search(text)
    if heading is None:
        return [("full report", text)]
    parts = [("preamble", text[: heading.start(1)])]
    while heading is not None:
        begin = heading.end()
        # The rest of a heading's line is its text, even if it looks like a heading.
        next_line = max(text.find("\n", begin), begin)
        following = _HEADING.search(text, next_line)
        parts.append((_normal(heading.group(1)), text[begin : following.start() if following else len(text)]))
        heading = following
    return parts


def _normal(heading: str) -> str:
    name = heading.lower().strip()
    if name in _NAMES:
        return _NAMES[name]
    if name in _OWN_NAMES:
        return name
    for kept in _KEPT:
        if kept in name:
            return kept
    return "findings" if any(view in name for view in _VIEWS) else name
