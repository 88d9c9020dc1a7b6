"""How a normalised score is called, and its two constants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Names of a normalised score 100 (R - low) / (high - low).

    Attributes:
        label: In tables.
        axis: On the axis of a picture.
        key: In CSV columns and TensorBoard.
        equation: The score of a return R.
    """

    label: str
    axis: str
    key: str
    equation: str


D4RL = Scale(
    label="D4RL score",
    axis="D4RL normalised score",
    key="d4rl_score",
    equation="score = 100 (R - min) / (max - min)",
)
HUMAN = Scale(
    label="human-normalised score",
    axis="human-normalised score",
    key="human_normalized_score",
    equation="human-normalised score = 100 (R - random) / (human - random)",
)
