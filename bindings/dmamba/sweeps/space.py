"""What a search chooses from: ranges, lists, seeds; known to be usable before anything starts.

A search does not visit every point, so what is checked is each end of each range and each value of
each list, with the others at their first value, and all of them at their last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dmamba import _C
from dmamba.configuration import flatten, load_config
from dmamba.sweeps.grid import (
    Point,
    check_device,
    make_point,
    read_lists,
    refuse_repeated,
    short_name,
)
from dmamba.sweeps.ranges import Range, parse_range

TARGETS = ("mean", "best")  # beside a number: over the targets of an evaluation


@dataclass(frozen=True)
class Space:
    """Ranges and lists, and what all trials have in common.

    Attributes:
        base: The configuration without the searched values, not resolved.
        ranges: By dotted key.
        lists: Texts of the values, by dotted key.
        seeds: Each trial's.
        written: All texts as they were given, to tell one search from another.
        values: What the texts of the lists stand for, by dotted key.
    """

    base: _C.Config
    ranges: dict[str, Range]
    lists: dict[str, list[str]]
    seeds: list[int]
    written: dict[str, list[str]]
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stores: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _environments: set[tuple[str, str, int]] = field(default_factory=set)

    @property
    def keys(self) -> list[str]:
        """Searched keys, dotted, in the order they were given."""
        return [key for key in self.written if key in self.ranges or key in self.lists]

    @property
    def dataset_mean(self) -> float | None:
        """Mean raw return of the dataset's episodes; None of several datasets."""
        means = [float(store.episode_returns.mean()) for store in self._stores.values()]
        return means[0] if len(means) == 1 else None

    def point(self, chosen: dict[str, Any]) -> Point:
        """A checked point.

        Args:
            chosen: A number or a text for each of :attr:`keys`.

        Raises:
            Error: Settings that cannot be used together.
        """
        texts = [f"{key}={_text(chosen[key])}" for key in self.keys]
        return make_point(self.base, self.keys, texts, self.seeds, self._stores, self._environments)

    def settings(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The chosen values by short name, with their types."""
        return {
            short_name(key, self.base): self.values.get(key, {}).get(chosen[key], chosen[key])
            for key in self.keys
        }


def make_space(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str],
    target: float | str,
    *,
    here: bool = True,
) -> Space:
    """The space of a search, checked.

    Args:
        config: What :func:`dmamba.configuration.load_config` takes.
        overrides: ``key=value``, ``key=v1,v2``, ``key=a..b``, ``key=log:a..b`` and ``seed=A:B``.
        target: The return whose evaluation counts, or one of ``TARGETS``.
        here: Whether the runs are this machine's, so that it must have their device.

    Raises:
        ConfigError: A text that cannot be read, nothing to search, a value that cannot be used, a
            target that is not evaluated.
        DataError: A dataset that cannot be read or has no episode as long as the context.
    """
    start = load_config(config)
    given = read_lists(start, list(overrides))
    known = flatten(start.to_dict())
    ranges: dict[str, Range] = {}
    for key, texts in given.items():
        found = [parse_range(key, text, known[key]) for text in texts]
        if any(found) and (len(found) > 1 or key == "seed"):
            advice = "seed=0:3 gives each trial seeds" if key == "seed" else "give it alone"
            raise _C.ConfigError(f"{key}={','.join(texts)}: a range in a list; {advice}")
        if found[0] is not None:
            ranges[key] = found[0]
    fixed = [f"{k}={v[0]}" for k, v in given.items() if len(v) == 1 and k not in ranges]
    base = load_config(config, fixed)
    lists = {key: texts for key, texts in given.items() if len(texts) > 1 and key != "seed"}
    if not (ranges or lists):
        raise _C.ConfigError(
            "nothing to search: give a range or a list, such as learning_rate=log:1e-4..1e-2"
        )
    seeds = [load_config(base, [f"seed={seed}"]).seed for seed in given.get("seed", [base.seed])]
    refuse_repeated("seed", seeds)
    space = Space(base, ranges, lists, seeds, given)
    _check(space, target, here)
    return space


def _check(space: Space, target: float | str, here: bool) -> None:
    candidates = {
        key: space.ranges[key].ends if key in space.ranges else space.lists[key]
        for key in space.keys
    }
    first = {key: texts[0] for key, texts in candidates.items()}
    chosen = [{**first, key: text} for key, texts in candidates.items() for text in texts]
    chosen.append({key: texts[-1] for key, texts in candidates.items()})
    for choice in chosen:
        label = " ".join(f"{key}={text}" for key, text in choice.items())
        try:
            point = space.point(choice)
            if here:
                check_device(point)
        except _C.Error as error:
            raise type(error)(f"point {label}: {error}") from None
        for key in space.lists:
            space.values.setdefault(key, {})[choice[key]] = point.settings[key]
        targets = point.configs[space.seeds[0]].evaluation.targets
        if target not in TARGETS and target not in targets:
            shown = ", ".join(f"{one:g}" for one in targets)
            raise _C.ConfigError(
                f"target {target:g} is not evaluated at point {label}, where evaluation.targets "
                f"are {shown}; choose one of them, or {' or '.join(TARGETS)}"
            )
    for key, texts in space.lists.items():
        refuse_repeated(key, texts)
    for key, values in space.values.items():  # 1e-3 and 0.001
        refuse_repeated(key, list(values.values()))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
