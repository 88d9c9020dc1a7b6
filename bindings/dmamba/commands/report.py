"""``dmamba report``: one page, with tables and plots, on the runs in a folder."""

from __future__ import annotations

import argparse

from dmamba.reporting import report

HELP = "Write one HTML page (and Markdown, and CSV) on a sweep, a run, or a folder of them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n"
        "  dmamba sweep hopper-sample K=5,10,20 seed=0:5 --output runs/context\n"
        "  dmamba report runs/context --output context.html"
    )
    parser.add_argument(
        "folder", metavar="DIR", help="a sweep, a run, or a folder with such; it is searched"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page, .html (DIR/report.html); .md, .csv and -plots/ lie beside it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the report, and says where it is."""
    made = report(arguments.folder, arguments.output)
    runs = len({row["run"] for row in made.rows})
    print(f"{runs} finished runs, {len(made.figures)} figures, {len(made.tables)} tables")
    print(f"report  {made.html}\ntext    {made.markdown}\nrows    {made.csv}")
    return 0
