"""What the package knows of one environment: sizes, score constants, the paper's recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """One environment of D4RL's locomotion suite.

    Attributes:
        name: Short name, as in dataset names (``hopper``).
        gym_id: gymnasium id whose rewards reproduce D4RL's v2 recordings.
        state_dim: Values in an observation.
        act_dim: Values in an action.
        score_min: Raw return that scores 0 (a random policy).
        score_max: Raw return that scores 100 (an expert).
        max_episode_steps: D4RL's time limit.
        score_source: Where the two constants come from.
        rtg_scale: Raw return per model unit in the paper's recipe; None where it has none.
        targets: The paper's target returns (raw); empty where it has none.
    """

    name: str
    gym_id: str
    state_dim: int
    act_dim: int
    score_min: float
    score_max: float
    max_episode_steps: int = 1000
    score_source: str = "D4RL, d4rl/infos.py"
    rtg_scale: float | None = None
    targets: tuple[float, ...] = ()
