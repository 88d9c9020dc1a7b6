"""An evaluation in words, in tables, and as a notebook shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmamba import envs
from dmamba.common import scores
from dmamba.display import notebook
from dmamba.envs import failures


class Evaluation(dict[str, Any]):
    """What an evaluation found: a dict that notebooks and IPython show as a table.

    :func:`dmamba.evaluate` says which keys there are.
    """

    def _repr_html_(self) -> str:
        if "context_lengths" in self:
            title, rows = lengths_table(self)
            return notebook.table([title], rows)
        described = describe_result(self)
        chosen = [format_choice(self)] if "chosen_from" in self else []
        return notebook.table([*described.heading, *chosen], described.rows, described.note)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(format_any(self))


@dataclass(frozen=True)
class Described:
    """An evaluation in words: lines above a table, its cells (header first), a line below."""

    heading: list[str]
    rows: list[list[str]]
    note: str


def format_result(result: dict[str, Any], dataset_mean: float | None = None) -> str:
    """The text of an evaluation; arguments as of :func:`describe_result`."""
    described = describe_result(result, dataset_mean)
    table = scores.format_table(described.rows)
    return "\n".join([*described.heading, table, f"  {described.note}"])


def describe_result(result: dict[str, Any], dataset_mean: float | None = None) -> Described:
    """The table of an evaluation, beside the dataset's own mean return where it is given.

    A game's recordings hold clipped rewards: their mean is called so, and has no score.
    """
    scored = result["constants"] is not None
    percent = f"{100 * result['confidence']:g} % interval"
    header = ["target", "return", "std error", percent]
    label = envs.scale_of(result["environment"]).label
    header += ([label, percent] if scored else []) + ["length"]
    some_failed = bool(result.get("failures"))
    rows = [[*header, *(["failed"] if some_failed else [])]]
    for row in result["targets"]:
        cells = _return_cells(row)
        if scored:
            cells += [f"{row['score_mean']:.1f}", scores.format_interval(row["score_interval"])]
        cells.append(f"{row['length_mean']:.0f}")
        rows.append([*cells, *([failures.format_count(row)] if some_failed else [])])
    if dataset_mean is not None:
        cells = _dataset_row(result["environment"], dataset_mean, scored)
        rows.append([*cells, *([""] if some_failed else [])])
    episodes = result["targets"][0]["episodes"]
    heading = (
        f"{result['environment']}, step {result['checkpoint_step']}, "
        f"{_format_policy(result)}, {episodes} episodes a target, "
        f"seed {result['seed']}, {result['time_seconds']:.0f} s" + format_engine(result)
    )
    note = envs.describe_constants(result["constants"])
    lines = [heading, *_format_choices(result), failures.describe(result, episodes)]
    return Described([line for line in lines if line], rows, note)


def format_any(result: dict[str, Any], dataset_mean: float | None = None) -> str:
    """The text of an evaluation with one length, with several, or with one that was chosen.

    Several are shown without the dataset's mean.
    """
    if "context_lengths" in result:
        heading, rows = lengths_table(result)
        return "\n".join([heading, scores.format_table(rows)])
    chosen = [format_choice(result)] if "chosen_from" in result else []
    return "\n".join([*chosen, format_result(result, dataset_mean)])


def lengths_table(result: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """A heading, and cells of a table (header first) with a row for each K and target."""
    first, *_ = results = list(result["context_lengths"].values())
    scored = first["constants"] is not None
    percent = f"{100 * first['confidence']:g} % interval"
    rows = [["K", "target", "return", "std error", percent, *(["score"] if scored else [])]]
    rows[0].append("length")
    some_failed = any(each.get("failures") for each in results)
    if some_failed:
        rows[0].append("failed")
    for each in results:
        for row in each["targets"]:
            rows.append(
                [
                    str(each["context_length"]),
                    *_return_cells(row),
                    *([f"{row['score_mean']:.1f}"] if scored else []),
                    f"{row['length_mean']:.0f}",
                    *([failures.format_count(row)] if some_failed else []),
                ]
            )
    heading = (
        f"{first['environment']}, step {first['checkpoint_step']}, windowed policy, "
        f"{first['targets'][0]['episodes']} episodes a target, seed {first['seed']}"
        + format_engine(first)
    )
    return heading, rows


def format_choice(result: dict[str, Any]) -> str:
    """What ``auto`` saw."""
    means = ", ".join(f"{length}: {mean:.1f}" for length, mean in result["chosen_from"].items())
    return (
        f"context length {result['context_length']}, chosen by the mean return over the targets "
        f"in {result['chosen_episodes']} other episodes a target: {means}"
    )


def format_engine(result: dict[str, Any]) -> str:
    """Names the engine where it is not the usual one, whose episodes are others."""
    engine = result.get("engine", "workers")  # versions without the key had no other
    return "" if engine == "workers" else f", {engine} {result['engine_version']}"


def _return_cells(row: dict[str, Any]) -> list[str]:
    """Target, mean return, its standard error and its interval."""
    error = row["return_stderr"]
    return [
        f"{row['target']:g}",
        f"{row['return_mean']:.1f}",
        "-" if error is None else f"± {error:.1f}",
        scores.format_interval(row["return_interval"]),
    ]


def _format_policy(result: dict[str, Any]) -> str:
    policy = f"{result['policy']} policy"
    if result["policy"] == "windowed":
        length = result["context_length"]
        return (
            policy if length == result["trained_context_length"] else f"{policy} of {length} steps"
        )
    forgets = result["forget_after"]
    return f"{policy} that forgets after {forgets} steps" if forgets else policy


def _dataset_row(environment: str, mean: float, scored: bool) -> list[str]:
    game = envs.is_game(environment)
    cells = ["dataset mean, clipped" if game else "dataset mean", f"{mean:.1f}", "", ""]
    if scored:
        cells += ["" if game else f"{envs.normalized_score(environment, mean):.1f}", ""]
    return [*cells, ""]


def _format_choices(result: dict[str, Any]) -> list[str]:
    """A line about what matters to games alone."""
    if "temperature" not in result:
        return []
    sticky = result["sticky_actions"]
    return [
        f"actions drawn at temperature {result['temperature']:g}, returns-to-go less "
        f"{result['rtg_rewards']} rewards, "
        + (f"sticky actions {sticky:g}" if sticky else "no sticky actions")
    ]
