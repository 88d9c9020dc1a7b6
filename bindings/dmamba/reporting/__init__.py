"""A report on a folder of runs: one HTML page, the same in Markdown, and a CSV of all scores.

    collect.py     which runs there are, in what they differ
    statistics.py  means, interquartile means, bootstrap intervals
    tables.py      the tables, and the rows of the CSV
    canvas.py      how a figure looks; figures.py: what is drawn
    pages.py       HTML and Markdown of them
    cells.py       runs and sweeps as a notebook shows them

The same runs give the same bytes: there is no date, and resampling has a fixed seed.
"""

from __future__ import annotations

import csv
import html
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common.files import write_text
from dmamba.reporting.canvas import Figure
from dmamba.reporting.collect import collect
from dmamba.reporting.figures import all_figures
from dmamba.reporting.pages import render_html, render_markdown
from dmamba.reporting.tables import Table, all_tables, csv_rows

__all__ = ["Report", "report"]

_PLOT = re.compile(r"\d\d-[a-z0-9-]+\.svg")


@dataclass(frozen=True)
class Report:
    """A report; a notebook shows its page.

    Attributes:
        folder: What it is on.
        html: The page's file.
        markdown: The same for a repository; its figures lie in the folder beside it.
        csv: A row per run, target and evaluation (last, best).
        tables: Those of the page.
        figures: Those of the page.
        rows: Those of the CSV.
    """

    folder: Path
    html: Path
    markdown: Path
    csv: Path
    tables: list[Table]
    figures: list[Figure]
    rows: list[dict[str, Any]]

    def _repr_html_(self) -> str:
        # A frame: the page's style is not the notebook's.
        page = html.escape(self.html.read_text(encoding="utf-8"), quote=True)
        style = "width:100%;height:80vh;border:1px solid #8884"
        return f'<iframe sandbox title="report" style="{style}" srcdoc="{page}"></iframe>'


def report(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Report:
    """Writes a report on a sweep, a run, or a folder of either.

    Args:
        folder: Runs are looked for in it and in folders below it.
        output: The page, ``.html``; ``.md``, ``.csv`` and ``-plots/`` of the same name lie beside
            it. None: ``report.html`` in the folder.

    Returns:
        The files that were written, and the tables, figures and rows in them.

    Raises:
        ConfigError: ``output`` does not end in .html.
        DataError: No finished run in the folder, or a damaged file; the message says what to do.

    Example:
        >>> made = dmamba.report("runs/sweep-hopper-sample")
        >>> made.html, [table.title for table in made.tables]
    """
    folder = Path(folder)
    page = folder / "report.html" if output is None else Path(output)
    if page.suffix != ".html":
        raise _C.ConfigError(f"{page}: the report is a page, so give a name that ends in .html")
    collection = collect(folder)
    tables, figures, rows = all_tables(collection), all_figures(collection), csv_rows(collection)
    plots = page.with_name(f"{page.stem}-plots")
    names = [f"{place:02d}-{figure.name}.svg" for place, figure in enumerate(figures, start=1)]
    plots.mkdir(parents=True, exist_ok=True)
    for name, figure in zip(names, figures, strict=True):
        write_text(plots / name, figure.svg)
    for path in plots.iterdir():  # of an earlier report, on other runs
        if _PLOT.fullmatch(path.name) and path.name not in names:
            path.unlink()
    files = [f"{plots.name}/{name}" for name in names]
    beside = {"markdown": page.with_suffix(".md"), "csv": page.with_suffix(".csv")}
    write_text(beside["csv"], _format_csv(rows))
    write_text(beside["markdown"], render_markdown(collection, tables, figures, files))
    write_text(page, render_html(collection, tables, figures, beside))
    return Report(folder, page, beside["markdown"], beside["csv"], tables, figures, rows)


def _format_csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
