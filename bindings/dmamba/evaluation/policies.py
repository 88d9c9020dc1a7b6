"""A trained model as a policy object, for loops of one's own and for Gymnasium's.

agent = dmamba.load_policy("runs/hopper-sample-seed0", target=3600)
env = agent.wrap(gymnasium.make("Hopper-v4"))
observation, _ = env.reset(seed=0)
done = False
while not done:
observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
done = terminated or truncated
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmamba import _C, evaluation, nn
from dmamba.evaluation import suites
from dmamba.runs import Run

if TYPE_CHECKING:
    from dmamba.nn.external import Factory


def load_policy(
    run: Run | str | Path,
    target: float | None = None,
    policy: str | None = None,
    *,
    num_envs: int | None = None,
    device: str | None = None,
    weights: str = "fp32",
    temperature: float | None = None,
    rtg_rewards: str | None = None,
    context_length: int = 0,
    forget_after: int = 0,
    set: str = "",
    model: torch.nn.Module | Factory | None = None,
) -> Agent:
    """Loads the policy of a run's latest checkpoint, or of one checkpoint; it can act at once.

    What is left out is taken from the run's configuration. No simulator is needed.

    Args:
        run: A :class:`dmamba.Run`, a run folder, or one checkpoint folder.
        target: Raw return to ask for; None: the first of the run's.
        policy: ``windowed`` or ``recurrent``.
        num_envs: None: for one environment, without a batch dimension; else so many at a time.
        device: Where the model computes, as for :func:`dmamba.evaluate`.
        weights: ``fp32`` or, for the recurrent policy on the CPU, ``bf16``.
        temperature: Of games alone.
        rtg_rewards: What returns-to-go go down by: ``raw``, ``none``, or of games ``clipped``.
        context_length: K of the windowed policy; 0: the model's.
        forget_after: Steps after which the recurrent policy begins anew; 0: never.
        set: Of a run on several sets, the one whose model acts.
        model: For a run with a model of your own: a module like it, or what makes one.

    Raises:
        ConfigError: Impossible arguments.
        CheckpointError: There is no usable checkpoint.

    Example:
        >>> agent = dmamba.load_policy("runs/hopper-sample-seed0", target=3600, policy="recurrent")
        >>> action = agent.act(observation)
        >>> agent.observe(reward)
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    loaded, info, config = evaluation.load_model(folder, device, set, model)
    asked = config.evaluation
    choices = suites.Choices(
        policy=policy or asked.policy,
        weights=weights,
        rtg_rewards=rtg_rewards or asked.rtg_rewards,
        temperature=asked.temperature if temperature is None else temperature,
        context_length=context_length,
        forget_after=forget_after,
    )
    if target is None:
        if not asked.targets:
            raise _C.ConfigError(f"{folder}: the run has no target returns; give one")
        target = asked.targets[0]
    return Agent(loaded, info, choices, target, num_envs, config.dataset.environment)


class Agent:
    """What :func:`load_policy` returns: a model that acts, in one environment or in several.

    The loop is :meth:`reset`, then :meth:`act` and :meth:`observe` in turn; an environment from
    :meth:`wrap` calls ``reset`` and ``observe`` by itself. Observations go in as the environment
    gives them, actions come out as the recordings have them.

    Attributes:
        num_envs: As given; None: one, without a batch dimension.
        targets: Raw returns that the next episodes are asked for, (num_envs,) or (1,).
        environment: That of the run's dataset; may be empty.
        model: The model, on its device.
    """

    def __init__(
        self,
        model: Any,
        info: dict[str, Any],
        choices: suites.Choices,
        target: float,
        num_envs: int | None,
        environment: str,
    ) -> None:
        if num_envs is not None and num_envs < 1:
            raise _C.ConfigError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self.environment, self.model = num_envs, environment, model
        self._count = num_envs or 1
        self._plays = isinstance(model, nn.AtariDMamba)
        self._policy = suites.make_policy(model, info, choices, self._count)
        self._acted = False
        self.targets = np.zeros(self._count)
        self._episodes = 0  # begun, which seeds the draws of the next
        self.reset(target)

    def reset(
        self,
        target: float | np.ndarray | None = None,
        *,
        which: np.ndarray | None = None,
        seed: int | None = None,
    ) -> None:
        """Begins an episode, in all environments or in some of them.

        Args:
            target: Raw return to ask for, one for all or (num_envs,); None: as before.
            which: (num_envs,) bool; None: all.
            seed: Of what is drawn, by the policy of a game alone; None: another one each time.

        Raises:
            ConfigError: A target that is not finite, or another number of them.
        """
        mask = self._row("which", True if which is None else which, bool)
        if target is not None:
            wanted = self._row("target", target, np.float64)
            if not np.isfinite(wanted[mask]).all():
                raise _C.ConfigError(f"reset: target must be finite, got {target}")
            self.targets = np.where(mask, wanted, self.targets)
        first = self._episodes if seed is None else seed
        self._episodes += self._count
        self._policy.reset(mask, self.targets, first + np.arange(self._count, dtype=np.int64))
        if mask.all():
            self._acted = False

    def act(self, observation: Any) -> Any:
        """The action for what the environment shows now.

        Args:
            observation: Raw, (state_dim,), or (num_envs, state_dim) for several; an array or a
                tensor. Of a game the last four frames, (4, 84, 84) uint8.

        Returns:
            (act_dim,) or (num_envs, act_dim) float32. Of a game an int, or (num_envs,) int64.

        Raises:
            DataError: Another shape, or a value that is not finite.
            Error: The reward of the action before has not been observed.
        """
        if self._acted:
            raise _C.Error(
                "act: the reward of the action before is missing: call observe(reward) after every "
                "step of the environment, or reset(); or step what agent.wrap(env) returns"
            )
        rows = self._observations(observation)
        actions = self._policy.act(rows)
        self._acted = True
        if self.num_envs is not None:
            return actions
        return int(actions[0]) if self._plays else actions[0]

    def observe(self, reward: float | np.ndarray) -> None:
        """Takes what the last action earned, raw; the return-to-go goes down by it.

        Args:
            reward: A number, or (num_envs,).

        Raises:
            DataError: Another number of them, or one that is not finite.
            Error: There has been no action.
        """
        if not self._acted:
            raise _C.Error("observe: there has been no act() before this reward")
        rewards = self._row("reward", reward, np.float64)
        if not np.isfinite(rewards).all():
            raise _C.DataError(f"observe: rewards must be finite, got {reward}")
        self._policy.observe(rewards)
        self._acted = False

    def wrap(self, env: Any) -> Any:
        """An environment that resets the policy and feeds it the rewards by itself.

        Args:
            env: A gymnasium environment, or for ``num_envs`` a ``gymnasium.vector.VectorEnv``.

        Returns:
            A wrapper, see ``dmamba.evaluation.feedback``; its ``episodes`` lists what was played.

        Raises:
            ConfigError: Another kind or number of environments.
            DataError: Its sizes are not the model's.
            Error: gymnasium is missing.
        """
        try:
            from dmamba.evaluation import feedback
        except ImportError as error:
            raise _C.Error(
                f"wrap needs gymnasium ({error}): pip install 'gymnasium>=1.1'"
            ) from error
        return feedback.wrap(env, self)

    def tensordict_module(self, observation: str = "observation", action: str = "action") -> Any:
        """The policy as a TensorDictModule, for TorchRL's ``env.rollout(steps, policy)``.

        TorchRL's environment has to be made of what :meth:`wrap` returns, which feeds back the
        rewards: ``GymWrapper(agent.wrap(env))``.

        Args:
            observation: The key that is read.
            action: The key that is written.

        Raises:
            Error: tensordict is missing.
        """
        try:
            from tensordict.nn import TensorDictModule
        except ImportError as error:
            raise _C.Error(
                f"tensordict_module needs tensordict ({error}): pip install torchrl"
            ) from error

        def act(observed: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.act(observed), device=observed.device)

        return TensorDictModule(act, in_keys=[observation], out_keys=[action])

    def _row(self, name: str, value: Any, dtype: Any) -> np.ndarray:
        """(num_envs,) of one value for all, or one for each."""
        array = np.asarray(value, dtype=dtype)
        if array.shape not in ((), (1,), (self._count,)):
            raise _C.DataError(
                f"{name} must be one value, or {self._count} for {self._count} environments, got "
                f"shape {list(array.shape)}"
            )
        return np.broadcast_to(array, (self._count,)).copy()

    def _observations(self, observation: Any) -> np.ndarray:
        if isinstance(observation, torch.Tensor):
            observation = observation.detach().cpu().numpy()
        dtype = np.uint8 if self._plays else np.float32
        one = (4, 84, 84) if self._plays else (self.model.state_dim,)
        wanted = one if self.num_envs is None else (self._count, *one)
        array = np.asarray(observation)
        if array.shape != wanted or (self._plays and array.dtype != np.uint8):
            raise _C.DataError(
                f"act: the observation must be {list(wanted)} {np.dtype(dtype).name}, got "
                f"{list(array.shape)} {array.dtype.name}"
            )
        rows = np.ascontiguousarray(array.reshape(self._count, *one), dtype=dtype)
        if not self._plays and not np.isfinite(rows).all():
            raise _C.DataError("act: the observation has a value that is not finite")
        return rows
