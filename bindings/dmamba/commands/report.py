"""``dmamba report``: one page, with tables and plots, on the runs in a folder."""

from __future__ import annotations

import argparse

from dmamba.commands.answers import Answer
from dmamba.reporting import report

HELP = "Write one HTML page (and Markdown, and CSV) on a sweep, a run, or a folder of them."
EXAMPLES = (
    ("dmamba report runs/sweep-hopper-sample", "report.html in it"),
    ("dmamba report runs --output all.html", "on all runs below a folder"),
)
JSON = "paths of the files, and the rows of the CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "folder", metavar="DIR", help="a sweep, a run, or a folder with such; it is searched"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page, .html (DIR/report.html); .md, .csv and -plots/ lie beside it",
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Writes the report, and says where it is."""
    made = report(arguments.folder, arguments.output)
    runs = len({row["run"] for row in made.rows})
    text = (
        f"{runs} finished runs, {len(made.figures)} figures, {len(made.tables)} tables\n"
        f"report  {made.html}\ntext    {made.markdown}\nrows    {made.csv}"
    )
    names = ("folder", "html", "markdown", "csv", "rows")
    return Answer(text, {"runs": runs, **{name: getattr(made, name) for name in names}}, note=True)
