"""Links within the docs: does every file and every heading that a page points to exist?

python -m tests.links
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.house import markdown

ROOT = Path(__file__).resolve().parents[1]
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def broken(root: Path) -> Iterator[str]:
    """A line for every link that leads nowhere; links to other hosts are not followed."""
    for page in markdown(root):
        for link in (first or second for first, second in _LINK.findall(_CODE.sub("", page.read_text()))):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.is_relative_to(root) or not target.exists():
                yield f"{page.relative_to(root)}: {link}: no such file"
            elif heading and heading not in headings(target):
                yield f"{page.relative_to(root)}: {link}: no such heading"


def headings(page: Path) -> set[str]:
    """The headings' names as GitHub makes them: lower case, spaces to hyphens, no other signs, numbered if repeated."""
    found: dict[str, int] = {}
    names = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


if __name__ == "__main__":
    wrong = list(broken(ROOT))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    sys.exit(bool(wrong))
