"""The two kinds of environments: gymnasium's with vectors, such as MuJoCo's, and Atari games.

A suite knows what a model needs to play in its environment: the batch of environments, the policy,
how many of each, and what a result has to tell beyond what all have.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dmamba import _C, envs, nn
from dmamba.envs.failures import Guard
from dmamba.evaluation.rollout import ArrayPolicy, FramePolicy, Policy
from dmamba.nn.external import ExternalModel, Model

# Fewer episodes than this don't pay for the start of a worker: on two cores that other programs
# use, 40 episodes took 4.5 s without and 5.4 s with two workers; on quieter ones 3.6 and 3.3 s.
EPISODES_PER_WORKER = 24
RTG_REWARDS = ("raw", "clipped", "none")
ENGINES = ("workers", "envpool")


@dataclass(frozen=True)
class Choices:
    """What a user chooses of an evaluation that the suites treat differently.

    Attributes:
        policy: ``windowed`` or ``recurrent``.
        weights: ``fp32`` or, of vectors alone, ``bf16``; see :class:`ArrayPolicy`.
        rtg_rewards: What returns-to-go go down by: ``raw`` rewards, ``none`` or, of games,
            ``clipped`` to [-1, 1].
        temperature: Of games alone, as what follows; see :class:`FramePolicy`.
        sticky_actions: See :class:`dmamba.envs.atari.Environments`.
        max_episode_length: Time limit in steps; 0, or one above the environment's own, leaves that.
        context_length: K of the windowed policy; 0: the model's.
        forget_after: Steps after which the recurrent policy begins anew; 0: never.
        engine: Of vectors alone: ``workers`` or ``envpool``.
    """

    policy: str = "windowed"
    weights: str = "fp32"
    rtg_rewards: str = "raw"
    temperature: float = 1.0
    sticky_actions: float = 0.0
    max_episode_length: int = 0
    context_length: int = 0
    forget_after: int = 0
    engine: str = "workers"

    @property
    def memory(self) -> tuple[int, int]:
        """The last arguments of a policy."""
        return self.context_length, self.forget_after

    def check_rtg_rewards(self) -> None:
        """Raises ConfigError where rtg_rewards is unknown."""
        if self.rtg_rewards not in RTG_REWARDS:
            raise _C.ConfigError(
                f"evaluation.rtg_rewards must be one of {', '.join(RTG_REWARDS)}, "
                f"got {self.rtg_rewards!r}"
            )


class VectorSuite:
    """Environments whose states and actions are vectors.

    Args:
        model: On the device where it is to compute.
        info: ``state_mean``, ``state_std``, ``rtg_scale``, as ``dmamba.nn.load`` gives.
        environment: gymnasium id.
        choices: The user's.

    Raises:
        ConfigError: An environment that cannot be made, or a choice that is for games.
        DataError: The environment's sizes are not the model's.
    """

    # Environments at a time. On a CPU enough rows to keep the matrix products busy; more would rest
    # while the last episodes end. A GPU takes hundreds of rows in the time of one.
    num_envs = {"cpu": 32, "cuda": 512}

    def __init__(
        self,
        model: nn.DMamba | ExternalModel,
        info: dict[str, Any],
        environment: str,
        choices: Choices,
    ) -> None:
        usual = Choices()
        choices.check_rtg_rewards()
        if choices.rtg_rewards == "clipped":
            raise _C.ConfigError(
                "evaluation.rtg_rewards: clipped is for models of Atari games; choose raw or none"
            )
        for name in ("temperature", "sticky_actions"):
            value = getattr(choices, name)
            if value != getattr(usual, name):
                raise _C.ConfigError(
                    f"evaluation.{name} is for models of Atari games, but this one's actions are "
                    f"vectors; leave it out, got {value}"
                )
        if envs.is_game(environment):
            raise _C.DataError(
                f"the model's states and actions are vectors, but {environment} is an Atari game; "
                "name the environment in which the dataset was recorded with dataset.environment=ID"
            )
        self.environment = environment
        self._model, self._info, self._choices = model, info, choices
        check_engine(choices.engine, environment)
        self._vector = import_vector()
        check_dimensions(
            environment,
            self._vector.dimensions(environment, choices.max_episode_length),
            (model.state_dim, model.act_dim),
            "the model",
        )

    def default_workers(self, jobs: int, slots: int) -> int:
        """Processes that step the environments where the caller doesn't say."""
        return default_workers(jobs, slots)

    @property
    def isolates(self) -> bool:
        """Whether even one worker had better be a process of its own."""
        return not self._vector.is_gymnasium_s_own(self.environment)

    def environments(
        self, slots: int, workers: int, seeds: np.ndarray | None = None, **options: Any
    ) -> Any:
        """A batch of environments, a context manager; ``seeds`` of all episodes for envpool."""
        length = self._choices.max_episode_length
        if self._choices.engine == "envpool":
            assert seeds is not None, "envpool plays what is known before"
            return import_pool().Environments(self.environment, slots, seeds, length, workers)
        return self._vector.Environments(self.environment, slots, length, workers, **options)

    def policy(self, slots: int) -> Policy:
        """The model's policy for a batch of environments."""
        return make_policy(self._model, self._info, self._choices, slots)

    def describe(self) -> dict[str, Any]:
        """What a result tells of the choices."""
        engine = self._choices.engine
        package = "envpool" if engine == "envpool" else "gymnasium"
        return {
            "rtg_rewards": self._choices.rtg_rewards,
            "engine": engine,
            "engine_version": importlib.metadata.version(package),
        }


class GameSuite:
    """Atari games; arguments and errors as of :class:`VectorSuite`."""

    # ALE steps all of a batch, the finished ones, too, so more are a cost on a CPU.
    num_envs = {"cpu": 32, "cuda": 128}

    def __init__(
        self, model: nn.AtariDMamba, info: dict[str, Any], environment: str, choices: Choices
    ) -> None:
        if choices.weights != "fp32":
            raise _C.ConfigError(
                f"weights {choices.weights} are not for models of Atari games, only fp32"
            )
        if not 0.0 <= choices.temperature < float("inf"):
            raise _C.ConfigError(
                f"evaluation.temperature must be finite and at least 0, got {choices.temperature}"
            )
        choices.check_rtg_rewards()
        check_engine(choices.engine, environment)
        if not 0.0 <= choices.sticky_actions < 1.0:
            raise _C.ConfigError(
                "evaluation.sticky_actions must be at least 0 and below 1, "
                f"got {choices.sticky_actions}"
            )
        self._atari = import_atari()
        found = self._atari.num_actions(environment)
        game = envs.find(environment)
        self.environment = environment if game is None else game.gym_id
        if found != model.num_actions:
            raise _C.DataError(
                f"the model chooses among {model.num_actions} actions, but {self.environment} has "
                f"{found}; name the game that was recorded with dataset.environment=ALE/GAME-v5"
            )
        self._model, self._info, self._choices = model, info, choices

    def default_workers(self, jobs: int, slots: int) -> int:
        """Threads of ALE's pool where the caller doesn't say: one a core."""
        from dmamba.envs.host import usable_cores

        return min(usable_cores(), slots)

    isolates = False

    def environments(
        self,
        slots: int,
        workers: int,
        seeds: np.ndarray | None = None,
        guard: Guard | None = None,
        **options: Any,
    ) -> Any:
        """A batch of games, a context manager; they need no guard, and no seeds before."""
        choices = self._choices
        return self._atari.Environments(
            self.environment,
            slots,
            choices.max_episode_length,
            workers,
            choices.sticky_actions,
            **options,
        )

    def policy(self, slots: int) -> Policy:
        """The model's policy for a batch of games."""
        return make_policy(self._model, self._info, self._choices, slots)

    def describe(self) -> dict[str, Any]:
        """What a result tells of the choices."""
        return {
            "temperature": self._choices.temperature,
            "rtg_rewards": self._choices.rtg_rewards,
            "sticky_actions": self._choices.sticky_actions,
            "engine": self._choices.engine,
            "engine_version": importlib.metadata.version("ale-py"),
        }


def make_policy(model: Model, info: dict[str, Any], choices: Choices, num_envs: int) -> Policy:
    """What acts in a batch of environments, of a model's kind.

    Args:
        model: On the device where it is to compute.
        info: As ``dmamba.nn.load`` gives.
        choices: The user's.
        num_envs: How many at a time.
    """
    if isinstance(model, nn.AtariDMamba):
        return FramePolicy(
            model,
            choices.policy,
            num_envs,
            info,
            choices.temperature,
            choices.rtg_rewards,
            *choices.memory,
        )
    return ArrayPolicy(
        model,
        choices.policy,
        num_envs,
        info,
        choices.weights,
        choices.rtg_rewards,
        *choices.memory,
    )


def choose(
    model: Model,
    info: dict[str, Any],
    environment: str,
    choices: Choices,
) -> VectorSuite | GameSuite:
    """The suite of a model's kind, in which it can play the environment."""
    if not environment:
        raise _C.ConfigError(
            "the run names no environment; train with dataset.environment=ID, for example "
            "dataset.environment=Hopper-v4 or ALE/Breakout-v5"
        )
    if isinstance(model, nn.AtariDMamba):
        return GameSuite(model, info, environment, choices)
    return VectorSuite(model, info, environment, choices)


def check_store(environment: str, store: Any, max_episode_length: int) -> None:
    """Raises ConfigError or DataError where a model of a dataset could not play in an environment.

    Args:
        environment: gymnasium id.
        store: The dataset.
        max_episode_length: As in :class:`Choices`.
    """
    if isinstance(store, _C.TrajectoryStore):
        check_dimensions(
            environment,
            import_vector().dimensions(environment, max_episode_length),
            (store.state_dim, store.act_dim),
            store.name,
        )
        return
    known = import_atari().num_actions(environment)
    if store.num_actions > known:
        raise _C.DataError(
            f"{store.name} has {store.num_actions} actions, but {environment} {known}; name the "
            "game that was recorded with dataset.environment=ALE/GAME-v5"
        )


def check_engine(engine: str, environment: str) -> None:
    """Raises ConfigError or Error where an engine cannot play an environment."""
    if engine not in ENGINES:
        raise _C.ConfigError(
            f"evaluation.engine must be one of {', '.join(ENGINES)}, got {engine!r}"
        )
    if engine == "workers":
        return
    if envs.is_game(environment):
        raise _C.ConfigError(
            f"evaluation.engine: envpool is not for Atari games such as {environment}, which "
            "ale-py's own C++ threads play; choose workers"
        )
    import_pool().check(environment)


def default_workers(jobs: int, slots: int) -> int:
    """Processes that step vectors' environments where the caller doesn't say: one a core, at most.

    Args:
        jobs: Episodes in all.
        slots: Environments at a time.
    """
    from dmamba.envs.host import usable_cores

    return max(1, min(usable_cores(), slots, jobs // EPISODES_PER_WORKER))


def model_device(model: Model) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def import_vector() -> Any:
    """The module that makes environments of vectors; gymnasium is needed from here on only."""
    try:
        from dmamba.envs import vector
    except ImportError as error:
        raise _C.Error(
            f"evaluation needs gymnasium and MuJoCo ({error}): pip install 'gymnasium[mujoco]>=1.1'"
        ) from error
    return vector


def import_pool() -> Any:
    """The module that has envpool step environments; envpool is needed from here on only."""
    try:
        import envpool  # noqa: F401
    except ImportError as error:
        raise _C.Error(
            f"evaluation.engine envpool needs envpool ({error}): pip install 'dmamba[fast]'"
        ) from error
    import_vector()  # which it is measured by
    from dmamba.envs import pool

    return pool


def import_atari() -> Any:
    """The module that makes batches of games; ale-py is needed from here on only."""
    try:
        from dmamba.envs import atari
    except ImportError as error:
        raise _C.Error(
            f"evaluation in Atari games needs ale-py and gymnasium ({error}): "
            "pip install 'ale-py>=0.12' 'gymnasium>=1.1'"
        ) from error
    return atari


def check_dimensions(
    environment: str, expected: tuple[int, int], found: tuple[int, int], whose: str
) -> None:
    """Raises DataError where (state, action) sizes are not the environment's."""
    if found != expected:
        raise _C.DataError(
            f"{whose} has states of {found[0]} values and actions of {found[1]}, but environment "
            f"{environment} has {expected[0]} and {expected[1]}; name the environment in which the "
            "dataset was recorded with dataset.environment=ID"
        )
