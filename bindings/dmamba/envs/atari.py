"""Batches of Atari games, by ale-py's own C++ batch of environments.

A step is four frames with one action; what is seen is the greater of the last two frames' pixels,
grey, shrunk to 84 x 84 by area, four steps deep. Actions are those of the game's minimal set,
rewards raw; an episode ends with the game, not with a life. This is how the DQN-replay recordings
were made: with their actions the games go by to the bit.

- An episode begins after 0 to 29 idle frames, the number drawn from the episode's seed, and without
  a press of FIRE: recordings of Breakout begin before one, and the model has to press it itself.
- ALE begins the stack of four with three frames of zeros, as training segments do.
- There is no autoreset of ours, and ALE's does no harm: it gives a slot that nobody waits for
  a new game. ALE cannot let single slots rest; those play on idly, which costs time, nothing else.
"""

from __future__ import annotations

import difflib

import ale_py
import numpy as np
from ale_py import roms
from ale_py.registration import rom_id_to_name
from ale_py.vector_env import AtariVectorEnv

from dmamba import _C
from dmamba.envs.failures import Failure
from dmamba.envs.games import FRAMES_PER_STEP, MAX_FRAMES, plain
from dmamba.envs.slots import SlotError

NOOP_MAX = 30  # as the author's environment, which draws 0 to 29, too
_IDLE = 0  # the first action of every set does nothing


def find_rom(game: str) -> str:
    """ale-py's name of a game.

    Args:
        game: ``ALE/MsPacman-v5``, ``MsPacman`` or ``ms_pacman``, in upper or lower case.

    Raises:
        ConfigError: There is no such game; names those that are spelt like it.
    """
    known = {plain(rom): rom for rom in roms.get_all_rom_ids()}
    rom = known.get(plain(game))
    if rom is None:
        close = difflib.get_close_matches(plain(game), known, n=3, cutoff=0.6)
        names = [f"ALE/{rom_id_to_name(known[name])}-v5" for name in close]
        advice = f"did you mean {' or '.join(names)}?" if names else "for example ALE/Breakout-v5"
        raise _C.ConfigError(f"there is no Atari game {game!r}; {advice}")
    return rom


def num_actions(game: str) -> int:
    """Actions in a game's minimal set.

    Raises:
        ConfigError: There is no such game.
    """
    return len(_load(game).getMinimalActionSet())


def screen_size(game: str) -> tuple[int, int]:
    """Rows and columns of a game's picture.

    Raises:
        ConfigError: There is no such game.
    """
    rows, columns = _load(game).getScreenDims()
    return rows, columns


class Environments:
    """``num_envs`` copies of a game; the protocol of :class:`dmamba.envs.vector.Environments`.

    Args:
        game: As for :func:`find_rom`.
        num_envs: Slots.
        max_episode_steps: Time limit; 0, or one above ALE's 27,000, leaves that.
        threads: Of ALE's pool.
        sticky_actions: Probability with which a frame repeats the action of the frame before it,
            whatever was chosen (Machado et al., 2018).
        screen: Show the game's own picture in colour and full size, one step deep, in place of what
            the model sees.

    Attributes:
        num_actions: Of the minimal set.
        failures: Always empty: games are threads of ALE's in this process, and don't fail alone.
        replaced: 0, likewise.

    Example:
        >>> with Environments("ALE/Breakout-v5", 16, threads=2) as environments:
        ...     frames = environments.reset(np.ones(16, dtype=bool), np.arange(16))
        ...     frames, rewards, ended = environments.step(actions, np.ones(16, dtype=bool))
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        max_episode_steps: int = 0,
        threads: int = 1,
        sticky_actions: float = 0.0,
        *,
        screen: bool = False,
    ) -> None:
        rows, columns = screen_size(game) if screen else (84, 84)
        limit = FRAMES_PER_STEP * max_episode_steps
        self._ale = AtariVectorEnv(
            find_rom(game),
            num_envs,
            num_threads=threads,
            max_num_frames_per_episode=min(limit, MAX_FRAMES) if limit > 0 else MAX_FRAMES,
            repeat_action_probability=sticky_actions,
            img_height=rows,
            img_width=columns,
            grayscale=not screen,
            stack_num=1 if screen else 4,
            frameskip=FRAMES_PER_STEP,
            noop_max=NOOP_MAX,
            use_fire_reset=False,
            reward_clipping=False,
        )
        self.num_envs = num_envs
        self.num_actions = int(self._ale.single_action_space.n)  # type: ignore[attr-defined]
        self.failures: dict[int, Failure] = {}
        self.replaced = 0
        self._begun = False

    def __enter__(self) -> Environments:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Starts episodes; the same seed starts the same episode in any slot.

        Args:
            mask: (num_envs,) bool, where to start one.
            seeds: (num_envs,) int64 below 2^31, of those episodes.

        Returns:
            Frames of all slots, (num_envs, 4, 84, 84) uint8, oldest first, zero before the start.
        """
        if not self._begun:  # ALE wants a first reset of all
            mask, self._begun = np.ones_like(mask), True
        frames, _ = self._ale.reset(seed=seeds[mask], options={"reset_mask": mask})
        return frames

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes a step where ``active``; what the others answer means nothing.

        Args:
            actions: (num_envs,) int64, in [0, num_actions) where active.
            active: (num_envs,) bool.

        Returns:
            Frames (num_envs, 4, 84, 84) uint8, raw rewards (num_envs,) float64 and whether the
            episode ended (num_envs,) bool.

        Raises:
            SlotError: An action that the game does not have.
        """
        actions = np.where(active, actions, _IDLE).astype(np.int64)
        # ALE would wait for ever for a thread that met such an action.
        for slot in np.flatnonzero((actions < 0) | (actions >= self.num_actions)):
            raise SlotError(
                int(slot), f"was given action {actions[slot]}, but has {self.num_actions} actions"
            )
        frames, rewards, terminated, truncated, _ = self._ale.step(actions)
        return frames, rewards.astype(np.float64), terminated | truncated

    def close(self) -> None:
        """Ends ALE's threads; may be called again."""
        self._ale = None  # type: ignore[assignment]


def _load(game: str) -> ale_py.ALEInterface:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    interface = ale_py.ALEInterface()
    interface.loadROM(roms.get_rom_path(find_rom(game)))
    return interface
