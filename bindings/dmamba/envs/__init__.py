"""Known environments and their normalised scores, D4RL's or the human-normalised one of games.

To add an environment: a file like hopper.py, and a row in ``ENVIRONMENTS``; a game has its row in
games.py. An environment that is in neither can be trained on and evaluated all the same; it just
has no normalised score.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import numpy as np

from dmamba.envs import games
from dmamba.envs.ant import ANT
from dmamba.envs.environment import Environment
from dmamba.envs.games import GAMES, Game
from dmamba.envs.halfcheetah import HALFCHEETAH
from dmamba.envs.hopper import HOPPER
from dmamba.envs.scale import D4RL, HUMAN, Scale
from dmamba.envs.walker2d import WALKER2D

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "GAMES",
    "Game",
    "Scale",
    "describe_constants",
    "find",
    "is_game",
    "normalized_score",
    "num_actions",
    "scale_of",
    "score_constants",
]

ENVIRONMENTS: dict[str, Environment] = {
    env.name: env for env in (HOPPER, HALFCHEETAH, WALKER2D, ANT)
}

# D4RL's own recordings: hopper-medium-v2, or as a file hopper_medium-v2.hdf5.
_D4RL_NAME = re.compile(
    r"(hopper|halfcheetah|walker2d|ant)[-_]"
    r"(random|medium|expert|medium[-_]replay|medium[-_]expert|full[-_]replay)-v[0-2](\.hdf5)?"
)

Returns = TypeVar("Returns", float, np.ndarray)


def find(name: str) -> Environment | Game | None:
    """Finds an environment by its name, its gymnasium id, or a dataset's name or path.

    Any ``ALE/NAME-v5`` is found as a game; see :func:`dmamba.envs.games.find`.

    Example:
        >>> find("Hopper-v4").name, find("mujoco/walker2d/medium-v0").name, find("CartPole-v1")
        ('hopper', 'walker2d', None)
    """
    game = games.find(name)
    if game is not None:
        return game
    for part in reversed(re.split(r"[/\\]", name)):
        for word in re.split(r"[-_.]", part.lower()):
            if word in ENVIRONMENTS:
                return ENVIRONMENTS[word]
    return None


def is_game(environment: str) -> bool:
    """Whether an id or a name is an Atari game's."""
    return games.find(environment) is not None


def num_actions(environment: str) -> int | None:
    """Actions of a game's minimal set; None for what is no game, or where only ale-py knows.

    Raises:
        ConfigError: An ``ALE/NAME-v5`` that there is not.
    """
    game = games.find(environment)
    if game is None or game.num_actions is not None:
        return None if game is None else game.num_actions
    try:
        from dmamba.envs import atari
    except ImportError:
        return None
    return atari.num_actions(game.gym_id)


def scale_of(environment: str) -> Scale:
    """How an environment's normalised score is called, whether or not it has one."""
    return HUMAN if is_game(environment) else D4RL


def normalized_score(environment: Environment | Game | str, returns: Returns) -> Returns | None:
    """The normalised score of raw returns; None for an environment without constants."""
    env = find(environment) if isinstance(environment, str) else environment
    if env is None or env.score_min is None or env.score_max is None:
        return None
    return 100.0 * (returns - env.score_min) / (env.score_max - env.score_min)


def score_constants(environment: str, dataset: str = "") -> dict[str, Any] | None:
    """The constants behind a normalised score, and whether they are borrowed.

    D4RL made the constants for its own recordings in its own environments. For any other set or
    version they are the best common yardstick there is, but borrowed, and a report has to say so.
    A game's constants are of the game, whoever recorded it.

    Args:
        environment: gymnasium id.
        dataset: Name or path of the dataset the policy was trained on.

    Returns:
        ``{"environment", "min", "max", "source", "borrowed"}``, or None for an environment
        without constants.
    """
    env = find(environment)
    if env is None or env.score_min is None:
        return None
    own = _D4RL_NAME.fullmatch(re.split(r"[/\\]", dataset)[-1]) is not None
    return {
        "environment": env.name,
        "min": env.score_min,
        "max": env.score_max,
        "source": env.score_source,
        "borrowed": isinstance(env, Environment) and (not own or environment != env.gym_id),
    }


def describe_constants(constants: dict[str, Any] | None) -> str:
    """One line that says which constants a score rests on."""
    if constants is None:
        return "no normalised score: the environment has no reference constants"
    line = (
        f"{scale_of(constants['environment']).equation}, {constants['environment']} "
        f"{constants['min']:g} / {constants['max']:g} ({constants['source']})"
    )
    return line + ("; borrowed: this is not D4RL's own set" if constants["borrowed"] else "")
