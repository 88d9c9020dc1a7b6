"""The rows of metrics.csv: what they hold, how they are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmamba import _C

METRICS = (
    "step",
    "training/loss",
    "training/grad_norm",
    "training/learning_rate",
    "training/skipped",
)
COUNTS = ("step", "training/skipped")  # whole numbers


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv; a last line without its end, cut off by a kill, does not count."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")  # no number holds such bytes
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        return []
    header = tuple(lines[0].split(","))
    if header not in (METRICS, METRICS[:-1]):  # older runs have skipped no step
        raise _C.DataError(f"{path}: the header is {lines[0]!r}, expected {','.join(METRICS)!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        try:
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells")
            read = (int if name in COUNTS else float for name in header)
            values = {
                name: kind(cell) for name, kind, cell in zip(header, read, cells, strict=True)
            }
        except ValueError as error:
            raise _C.DataError(
                f"{path}:{number}: not a row of metrics: {line!r} ({error})"
            ) from None
        rows.append({"training/skipped": 0} | values)
    return rows


def row_cells(row: dict[str, Any]) -> list[str]:
    """A row as metrics.csv has it; numbers keep their bits."""
    return [str(row[name]) if name in COUNTS else repr(float(row[name])) for name in METRICS]
