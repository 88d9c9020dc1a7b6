"""HTML and Markdown of a report's tables and figures.

The page holds everything: style and figures are in it, there is no script, and its policy lets a
browser fetch nothing. All texts that come from runs are escaped.
"""

from __future__ import annotations

import re
from pathlib import Path

from dmamba.common.scores import format_markdown
from dmamba.reporting.canvas import Figure
from dmamba.reporting.collect import Collection
from dmamba.reporting.tables import Table

_NUMBER = re.compile(r"-|[-\d.,]+( ± [\d.]+)?|\[[-\d., ]+\]|no\. \d+")
_SPECIAL = re.compile(r"([\\`*_{}<>#|$&~]|\[(?=[^\]]*\]\())")


def summarize(collection: Collection) -> list[str]:
    """What the report is on, in sentences."""
    count = len(collection.records)
    seeds = sorted({record.seed for record in collection.records})
    sentences = [
        f"{count} finished {'run' if count == 1 else 'runs'} of {len(collection.points)} "
        f"{'setting' if len(collection.points) == 1 else 'settings'}"
        + (f" ({', '.join(collection.keys)})" if collection.keys else "")
        + f"; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    ]
    if collection.unfinished:
        sentences.append(f"Not finished: {len(collection.unfinished)}, listed below.")
    evaluated = [record for record in collection.records if record.targets]
    if not evaluated:
        sentences.append("No run was evaluated, so there are no scores.")
        return sentences
    sentences.append(
        "last: the evaluation at the end of a training. best: for each target the evaluation of a "
        "training that did best, a maximum and so biased upwards. The two are never mixed."
    )
    sentences.append(
        "IQM: interquartile mean, the mean of the middle half. Intervals are 95 %, percentile "
        "bootstrap over seeds, stratified by dataset; of one seed, over its evaluation's episodes."
    )
    return sentences


def title_of(collection: Collection) -> str:
    """The folder's name."""
    return collection.folder.resolve().name


def render_html(
    collection: Collection, tables: list[Table], figures: list[Figure], beside: dict[str, Path]
) -> str:
    """The page.

    Args:
        collection: The runs.
        tables: In order.
        figures: In order; they come before the tables.
        beside: Files with the same content, by kind.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import

    environment = Environment(
        loader=PackageLoader("dmamba.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.tests["number"] = lambda text: _NUMBER.fullmatch(text) is not None
    return environment.get_template("report.html.j2").render(
        title=title_of(collection),
        sentences=summarize(collection),
        tables=tables,
        pictures=[(f, f.inline(f"f{place}")) for place, f in enumerate(figures, start=1)],
        beside={kind: path.name for kind, path in beside.items()},
    )


def render_markdown(
    collection: Collection, tables: list[Table], figures: list[Figure], files: list[str]
) -> str:
    """The same for a repository.

    Args:
        collection: The runs.
        tables: In order.
        figures: In order.
        files: Of the figures, from where the text lies.
    """
    parts = [f"# {_escape(title_of(collection))}", *map(_escape, summarize(collection))]
    for figure, file in zip(figures, files, strict=True):
        caption = _escape(figure.caption)
        alt = re.sub(r"[\[\]]", "", _escape(figure.alt))
        parts += [f"![{alt}](<{file}>)", caption]
    for table in tables:
        cells = [[_escape(cell) for cell in row] for row in [table.columns, *table.rows]]
        parts += [f"## {_escape(table.title)}", format_markdown(cells)]
        parts += [_escape(table.note)] if table.note else []
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """A text as it is: neither Markdown nor HTML, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
