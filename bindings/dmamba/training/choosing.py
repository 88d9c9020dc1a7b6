"""K chosen while training: a schedule on the loss of held-out episodes, a bandit on returns.

Every ``training.context_every`` steps a rule is told how the model does with one or several of the
lengths, and says with which the steps to come are drawn, and which one the model would act with::

    schedule grow     from the shortest length to the next once its loss stops falling
    schedule shrink   from the longest likewise
    bandit ucb        the length with the highest discounted mean return, plus a bonus for what was
                      tried little (Garivier and Moulines, arXiv 0805.3415)
    bandit halving    drawn among several, the worse half of which is dropped each time (Karnin,
                      Koren and Somekh, ICML 2013)

What a rule has come to follows from what it was told, which a checkpoint keeps: a run that was
stopped chooses as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from dmamba import _C

DISCOUNT = 0.9  # of a return a decision later: the model it came from has changed
EXPLORATION = 0.5  # weight of the bonus, for returns that are scaled to [0, 1]


Measure = Callable[[int, Callable[[], None]], float]


class Rule:
    """What a rule answers; ``lengths`` rise, and ``tolerance`` is ``training.context_tolerance``.

    Attributes:
        drawn: Lengths that the steps to come draw from, each as likely as any other.
        best: The length to act with.
    """

    def __init__(self, lengths: Sequence[int], tolerance: float) -> None:
        self.lengths = list(lengths)
        self.tolerance = tolerance
        self.drawn = self.lengths[:1]
        self.best = self.lengths[0]

    @property
    def settled(self) -> bool:
        """Whether nothing is left to decide."""
        return False

    def told(self, signals: dict[int, float]) -> None:
        """Takes what was measured with each of the lengths ``drawn``: losses, or returns."""
        raise NotImplementedError


class Grow(Rule):
    """The next longer length once the held-out loss falls by less than the tolerance."""

    def __init__(self, lengths: Sequence[int], tolerance: float) -> None:
        super().__init__(lengths, tolerance)
        self._place = 0
        self._before: float | None = None  # the loss at the last decision, with the same length

    @property
    def settled(self) -> bool:
        """At the last length there is nothing left to decide."""
        return self._place == len(self.lengths) - 1

    def told(self, signals: dict[int, float]) -> None:
        """As :class:`Rule`; losses."""
        loss = signals[self.best]
        stalled = self._before is not None and loss > self._before * (1.0 - self.tolerance)
        self._before = None if stalled else loss
        self._place += stalled
        self.best = self.lengths[self._place]
        self.drawn = [self.best]


class Shrink(Grow):
    """From the longest to the next shorter likewise."""

    def __init__(self, lengths: Sequence[int], tolerance: float) -> None:
        super().__init__(list(reversed(lengths)), tolerance)


class Ucb(Rule):
    """Discounted UCB: one length at a time, each once at first."""

    def __init__(self, lengths: Sequence[int], tolerance: float) -> None:
        super().__init__(lengths, tolerance)
        self._seen: list[tuple[int, float]] = []

    def told(self, signals: dict[int, float]) -> None:
        """As :class:`Rule`; returns."""
        self._seen += signals.items()
        tried = {length for length, _ in self._seen}
        means, counts = self._discounted()
        self.best = max(sorted(tried), key=lambda length: means[length])
        untried = [length for length in self.lengths if length not in tried]
        bonus = {
            length: EXPLORATION * math.sqrt(math.log(1.0 + sum(counts.values())) / counts[length])
            for length in tried
        }
        self.drawn = untried[:1] or [
            max(self.lengths, key=lambda length: means[length] + bonus[length])
        ]

    def _discounted(self) -> tuple[dict[int, float], dict[int, float]]:
        """The mean return of each length, scaled to [0, 1], and how often it was tried."""
        low = min(value for _, value in self._seen)
        span = max(value for _, value in self._seen) - low
        sums: dict[int, float] = {}
        counts: dict[int, float] = {}
        for age, (length, value) in enumerate(reversed(self._seen)):
            weight = DISCOUNT**age
            scaled = (value - low) / span if span > 0 else 0.5
            sums[length] = sums.get(length, 0.0) + weight * scaled
            counts[length] = counts.get(length, 0.0) + weight
        return {length: sums[length] / counts[length] for length in sums}, counts


class Halving(Rule):
    """Successive halving: all lengths at first; each decision keeps the better half."""

    def __init__(self, lengths: Sequence[int], tolerance: float) -> None:
        super().__init__(lengths, tolerance)
        self.drawn = list(self.lengths)
        self.best = self.lengths[-1]

    @property
    def settled(self) -> bool:
        """One length is left."""
        return len(self.drawn) == 1

    def told(self, signals: dict[int, float]) -> None:
        """As :class:`Rule`; returns."""
        ranked = sorted(self.drawn, key=lambda length: -signals[length])  # of equals the shortest
        self.best = ranked[0]
        self.drawn = sorted(ranked[: math.ceil(len(ranked) / 2)])


RULES: dict[str, dict[str, type[Rule]]] = {  # the first is what `auto` means
    "schedule": {"grow": Grow, "shrink": Shrink},
    "bandit": {"ucb": Ucb, "halving": Halving},
}


class Choice:
    """The choice of a run, which it makes through its trainer.

    Args:
        config: Resolved.
        measure: From a length to the held-out loss of a schedule, or the return of a bandit; also
            given a function to call now and then, which may raise to stop.

    Attributes:
        decisions: What was decided, oldest first: dicts with ``step``, ``signals`` ({K: value}),
            ``drawn`` and ``best`` from then on. Where a measurement failed, ``signals`` is empty,
            ``error`` says why, and what was drawn stays.
    """

    def __init__(self, config: _C.Config, measure: Measure) -> None:
        training = config.training
        rules = RULES[training.context]
        name = training.context_rule
        self._make = next(iter(rules.values())) if name == "auto" else rules[name]
        self._arguments = training.contexts, training.context_tolerance
        self._every = training.context_every
        # After the last step there is none to make with the next length of a schedule; a bandit has
        # one more return to know its best length by.
        self._last = training.steps - (training.context == "schedule")
        self._measure = measure
        self._rule = self._make(*self._arguments)
        self.decisions: list[dict[str, Any]] = []

    def connect(self, trainer: _C.Trainer) -> None:
        """Goes on from the trainer's checkpoint, if it has loaded one, else begins."""
        note = json.loads(trainer.context_note or "[]")
        for decision in note:
            signals = {int(length): value for length, value in decision["signals"].items()}
            if signals:
                self._rule.told(signals)
            self.decisions.append({**decision, "signals": signals})
        self._hand_over(trainer)

    def next_step(self, step: int) -> int | None:
        """The next step after ``step`` at which something is decided, if there is one."""
        coming = (step // self._every + 1) * self._every
        return None if self._rule.settled or coming > self._last else coming

    def due(self, step: int) -> bool:
        """Whether something is to be decided now."""
        decided = self.decisions[-1]["step"] if self.decisions else 0
        return decided < step <= self._last and step % self._every == 0 and not self._rule.settled

    def decide(
        self, trainer: _C.Trainer, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Measures, and has the trainer go on with what the rule says; the new decision."""
        made: dict[str, Any] = {"step": trainer.step, "signals": {}}
        try:
            made["signals"] = {length: self._measure(length, check) for length in self._rule.drawn}
            self._rule.told(made["signals"])
        except _C.Error as error:  # of an evaluation: the training is none the worse for it
            made["error"] = str(error)
        self.decisions.append({**made, "drawn": self._rule.drawn, "best": self._rule.best})
        self._hand_over(trainer)
        return self.decisions[-1]

    def _hand_over(self, trainer: _C.Trainer) -> None:
        trainer.choose_contexts(self._rule.drawn, self._rule.best, json.dumps(self.decisions))


def format_decision(decision: dict[str, Any], what: str) -> str:
    """A line for the terminal; ``what`` is ``loss`` or ``return``."""
    seen = ", ".join(f"{length}: {value:.4g}" for length, value in decision["signals"].items())
    drawn = ", ".join(map(str, decision["drawn"]))
    if "error" in decision:
        return (
            f"step {decision['step']}: nothing decided, goes on with K {drawn}; {decision['error']}"
        )
    return f"step {decision['step']}: {what} with K {seen}; goes on with K {drawn}"
