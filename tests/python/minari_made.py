"""Datasets that Minari itself writes, of random numbers."""

import warnings

import minari
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Text, Tuple
from minari.data_collector.episode_buffer import EpisodeBuffer

ID = "mujoco/hopper/medium-v0"
LENGTHS = (9, 4, 12)
VECTOR = {"observation_space": Box(-9, 9, (11,), np.float64), "action_space": Box(-1, 1, (3,))}


def draw(space: Space, count: int):
    """A batch of a space's samples, as buffers have it."""
    if isinstance(space, Dict):
        return {key: draw(part, count) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(draw(part, count) for part in space.spaces)
    space.seed(count)
    samples = [space.sample() for _ in range(count)]
    return samples if isinstance(space, Text) else np.stack(samples)


def make_episodes(spaces) -> list[EpisodeBuffer]:
    """Every second one terminated, the others truncated."""
    random = np.random.default_rng(0)
    return [
        EpisodeBuffer(
            id=number,
            observations=draw(spaces["observation_space"], steps + 1),
            actions=draw(spaces["action_space"], steps),
            rewards=random.normal(2, 1, steps),
            terminations=(np.arange(steps) == steps - 1) & (number % 2 == 0),
            truncations=(np.arange(steps) == steps - 1) & (number % 2 == 1),
            infos={"speed": random.normal(size=steps + 1)},
        )
        for number, steps in enumerate(LENGTHS)
    ]


def make(name: str, episodes=None, **arguments) -> list[EpisodeBuffer]:
    """Writes a dataset; returns its episodes."""
    spaces = arguments if "observation_space" in arguments else VECTOR
    episodes = make_episodes(spaces) if episodes is None else episodes
    arguments.setdefault("data_format", "hdf5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(name, episodes, **arguments)
    return episodes


def reference(folder) -> list:
    """The episodes as Minari reads them."""
    return list(minari.MinariDataset(str(folder)).iterate_episodes())
