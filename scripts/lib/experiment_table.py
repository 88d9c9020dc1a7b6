"""The results of experiments beside their references, as tables."""

from __future__ import annotations

import csv
import io
from typing import Any

from dmamba.common import scores
from dmamba.common.scores import format_markdown, format_number


def format_tables(results: list[dict[str, Any]], confidence: float = 0.95) -> str:
    """The results as Markdown: returns by target, then losses and times."""
    percent = f"{100 * confidence:g} % interval"
    rows = [
        ["experiment", "target", "seeds", "last return", "last score", percent, "best score"]
        + ["reference", "not below it"]
    ]
    for result in results:
        for row in result["targets"]:
            last, best = row["last"], row["best"]
            rows.append(
                [result["experiment"], format_number(row["target"], 0), str(len(result["seeds"]))]
                + [f"{last['return_mean']:.0f} ± {format_number(last['return_stderr'], 0)}"]
                + [
                    format_number(last["score_mean"]),
                    scores.format_interval(last["score_interval"]),
                ]
                + [format_number(best["score_mean"]), _reference(row), _verdict(row)]
            )
    times = [
        ["experiment", "loss", "reference", "training s", "evaluation s", "waiting s"]
        + ["author's program: training + evaluation s", "device"]
    ]
    for result in results:
        if not result["seeds"]:
            continue
        author = result.get("author_seconds")
        mark = " (since resumed)" if result["resumed"] else ""
        times.append(
            [result["experiment"], format_number(result["loss"], 4)]
            + [
                format_number(result["reference_loss"], 4),
                format_number(result["training_seconds"]) + mark,
            ]
            + [format_number(result[f"{part}_seconds"]) for part in ("evaluation", "waiting")]
            + ["-" if author is None else f"{author['training']:.0f} + {author['evaluation']:.0f}"]
            + [result["device"]]
        )
    missing = [
        f"{result['experiment']}: no finished run of seed {', '.join(map(str, seeds))}"
        for result in results
        if (seeds := result["missing_seeds"])
    ]
    parts = [format_markdown(rows)] if len(rows) > 1 else []
    parts += [format_markdown(times)] if len(times) > 1 else []
    return "\n\n".join([*parts, *missing])


def format_csv(results: list[dict[str, Any]]) -> str:
    """One row per experiment and target."""
    header = ["experiment", "target", "seeds", "last_return", "last_return_stderr", "last_score"]
    header += ["best_return", "best_return_stderr", "best_score", "reference", "reference_stderr"]
    header += ["not_below", "loss", "training_seconds", "evaluation_seconds", "waiting_seconds"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for result in results:
        for row in result["targets"]:
            reference = row.get("reference", {})
            cells = [result["experiment"], row["target"], len(result["seeds"])]
            for which in ("last", "best"):
                cells += [row[which][k] for k in ("return_mean", "return_stderr", "score_mean")]
            cells += [reference.get("score", reference.get("return")), reference.get("stderr")]
            cells += [row.get("not_below"), result["loss"]]
            cells += [result[f"{part}_seconds"] for part in ("training", "evaluation", "waiting")]
            writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def _reference(row: dict[str, Any]) -> str:
    reference = row.get("reference")
    if reference is None:
        return "-"
    unit = "score " if "score" in reference else ""
    value = reference.get("score", reference.get("return"))
    which = f"{reference.get('which', 'last')}, " if "which" in reference else ""
    return f"{unit}{value:g} ± {reference['stderr']:g} ({which}{reference['source']})"


def _verdict(row: dict[str, Any]) -> str:
    return "-" if "reference" not in row else "pass" if row["not_below"] else "fail"
