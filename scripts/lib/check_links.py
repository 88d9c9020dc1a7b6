"""Checks links without a network: of the Markdown files as a git host shows them, or of a site.

    python scripts/lib/check_links.py            README.md, ..., docs/*.md
    python scripts/lib/check_links.py SITE       every HTML file and style sheet below SITE

A link into the tree must lead to a file, and its anchor to a heading (slugs are GitHub's) or an
element; an address elsewhere must only be well formed. A site's pages load nothing from elsewhere.
"""

import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
AUTOLINK = re.compile(r"<(https?:[^>\s]+)>")
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\.[a-z]{2,}(:\d+)?")
STYLE_ADDRESS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


def slug(heading: str) -> str:
    """The anchor that a git host gives to a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
    text = re.sub(r"[^\w\- ]", "", text.strip().lower())
    return text.replace(" ", "-")


def heading_slugs(markdown: str) -> set[str]:
    """The anchors of a Markdown text; a heading that comes again has a number."""
    found: dict[str, int] = {}
    slugs = set()
    for match in HEADING.finditer(FENCE.sub("", markdown)):
        name = slug(match[1])
        count = found.get(name, 0)
        slugs.add(f"{name}-{count}" if count else name)
        found[name] = count + 1
    slugs.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", markdown))
    return slugs


def markdown_links(markdown: str) -> Iterator[str]:
    """The targets of the links and images of a Markdown text, those in code left out."""
    text = CODE.sub("", FENCE.sub("", markdown))
    for pattern in (LINK, DEFINITION, AUTOLINK):
        yield from pattern.findall(text)


class _Page(HTMLParser):
    """What one HTML file links to (``links``), loads (``resources``), and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one element."""
        values = {name: value for name, value in attrs if value}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values:
            self.resources.append(values["src"])
        elif tag == "link" and "href" in values:
            self.resources.append(values["href"])


def address_problem(address: str) -> str | None:
    """Says what is wrong with an address elsewhere, or returns None."""
    parts = urlsplit(address)
    if parts.scheme == "mailto":
        return None if "@" in parts.path else "no mail address"
    if parts.scheme not in ("http", "https"):
        return f"unknown scheme {parts.scheme!r}"
    return None if HOST.fullmatch(parts.netloc.lower()) else f"no host {parts.netloc!r}"


def target_problem(
    file: Path, target: str, root: Path, anchors_of: Callable[[Path], set[str] | None]
) -> str | None:
    """Says what is wrong with a link, or returns None.

    Args:
        file: The file that has it.
        target: What it says.
        root: Where links may lead.
        anchors_of: The anchors of a file; None for a kind of file that has none.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
        return address_problem(target)
    if target.startswith("/"):
        return "begins with '/': give a path relative to the file"
    parts = urlsplit(target)
    path = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
    if not path.is_relative_to(root.resolve()):
        return f"leads out of {root}"
    if not path.exists():
        return "there is no such file"
    if not parts.fragment:
        return None
    anchors = anchors_of(path)
    if anchors is None or unquote(parts.fragment) in anchors:
        return None
    return f"there is no anchor '{parts.fragment}' in {path.name}"


def tree_problems(root: Path) -> Iterator[str]:
    """Yields `file: link: what is wrong` of the Markdown files of a tree."""
    files = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]
    known: dict[Path, set[str]] = {}

    def anchors_of(path: Path) -> set[str] | None:
        if path.suffix != ".md":
            return None
        if path not in known:
            known[path] = heading_slugs(path.read_text(encoding="utf-8"))
        return known[path]

    for file in files:
        for target in markdown_links(file.read_text(encoding="utf-8")):
            problem = target_problem(file, target, root, anchors_of)
            if problem:
                yield f"{file.relative_to(root)}: link {target}: {problem}"


def site_problems(site: Path) -> Iterator[str]:
    """Yields `file: link: what is wrong` of a site's pages and style sheets."""
    pages = {
        path.resolve(): _Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    if not pages:
        yield f"{site}: no pages"

    def anchors_of(path: Path) -> set[str] | None:
        return pages[path].anchors | {"", "top"} if path in pages else None

    loads = {path: page.resources for path, page in pages.items()}
    for path in sorted(site.rglob("*.css")):
        found = STYLE_ADDRESS.findall(path.read_text(encoding="utf-8"))
        loads[path.resolve()] = [a or b for a, b in found if not (a or b).startswith("data:")]
    for path, resources in loads.items():
        name = path.relative_to(site.resolve())
        for target in resources:
            if re.match(r"([a-z][a-z0-9+.-]*:)?//", target, re.IGNORECASE):
                yield f"{name}: loads {target}: a page must load nothing from elsewhere"
            elif not target.startswith("data:"):
                problem = target_problem(path, target, site, lambda _: None)
                if problem:
                    yield f"{name}: loads {target}: {problem}"
    for path, page in pages.items():
        for target in page.links:
            problem = target_problem(path, target, site, anchors_of)
            if problem:
                yield f"{path.relative_to(site.resolve())}: link {target}: {problem}"


def main(arguments: list[str]) -> int:
    """Prints every problem; returns the exit status."""
    found = site_problems(Path(arguments[0])) if arguments else tree_problems(ROOT)
    problems = list(found)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
