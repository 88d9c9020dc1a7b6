"""What the documentation needs beyond Sphinx: links, names of C++ classes, the commands' help.

Pages are written for a git host first. In the site three pages show files that lie elsewhere, links
to files beside docs/ lead to such a page or become plain text, and what the extension module's
docstrings say about types is cleaned of pybind11's spelling.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

# Pages of the site by the file that each shows. search.html is Sphinx's own page.
SHOWN = {
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
    "docs/search.md": "searching",
}
ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_COLUMNS = "92"  # of the commands' help


# What only pybind11 says: the first argument, and that an int is what can be one.
_SPELLINGS = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"^\(self: [\w.]+(, )?", "("),
        (r"typing\.SupportsInt \| typing\.SupportsIndex", "int"),
        (r"typing\.SupportsFloat \| typing\.SupportsIndex", "float"),
        (r"(collections\.abc|numpy\.typing|numpy|typing|torch)\.(?=\w)", ""),
        (r"dmamba\._C\.(cpp\.)?", ""),
    )
)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts the file that a page shows in its place, and adapts the links to the site."""
    folder = ROOT / "docs"
    for file, page in SHOWN.items():
        if page == name:
            source[0] = (ROOT / file).read_text(encoding="utf-8")
            folder = (ROOT / file).parent

    def adapt(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path or path.startswith("/"):
            return match[0]
        inside = os.path.relpath((folder / path).resolve(), ROOT)
        if inside in SHOWN:
            return f"[{text}]({SHOWN[inside]}.md{hash_}{anchor})"
        if inside == "README.md":
            return f"[{text}](index.md)"
        if inside.startswith("docs/"):
            return f"[{text}]({inside.removeprefix('docs/')}{hash_}{anchor})"
        return text if text.startswith("`") else f"`{inside}`"

    if "/" not in name:
        source[0] = _LINK.sub(adapt, source[0])


def find_name(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Resolves a Python name under which a class is not documented, such as its module's.

    Types in signatures that are not ours stay text. A name of ours, and any that is written as a
    reference (:func:`name`), is left to Sphinx where it is not found, and Sphinx reports it.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    known = env.domains["py"].objects
    last = target.rpartition(".")[2]
    found = [name for name in known if name.rpartition(".")[2] == last]
    if len(found) == 1 and (target.startswith("dmamba.") or "." not in target):
        entry = known[found[0]]
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0]
        )
    package, dot, _ = target.partition(".")
    written = "refexplicit" in node and not (dot and package in sys.modules)
    return None if written or package == "dmamba" else content


def clean_signature(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str | None, returned: Any
) -> tuple[str | None, Any]:
    """Takes out of a signature what only pybind11 says."""

    def clean(text: str) -> str:
        for pattern, plain in _SPELLINGS:
            text = pattern.sub(plain, text)
        return text

    return signature and clean(signature), clean(returned) if isinstance(
        returned, str
    ) else returned


class CommandHelp(Directive):
    """``.. command-help::`` shows what every command says to ``--help``."""

    def run(self) -> list[nodes.Node]:
        """A section for each command."""
        from dmamba.commands import COMMANDS, main

        os.environ["COLUMNS"] = _COLUMNS
        sections: list[nodes.Node] = []
        for name in COMMANDS:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                main([name, "--help"])
            title = f"dmamba {name}"
            section = nodes.section(ids=[f"dmamba-{name}"], names=[title])
            section += nodes.title("", title)
            section += nodes.literal_block(said.getvalue(), said.getvalue(), language="text")
            self.state.document.note_explicit_target(section, section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers all of it."""
    app.connect("source-read", read_page)
    app.connect("missing-reference", find_name)
    app.connect("autodoc-process-signature", clean_signature)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
