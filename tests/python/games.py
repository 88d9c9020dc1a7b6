"""Stand-ins for a trained model of games, to test what is around it."""

import json
import shutil

import numpy as np
import torch

import dmamba
from dmamba import _C, evaluation


class FakeModel(torch.nn.Module):
    """Has what evaluation asks of a model for games."""

    def __init__(self, num_actions=4):
        super().__init__()
        self.num_actions = num_actions
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.cpp_module = num_actions


class FakePolicy:
    """Draws actions that follow from the episode's seed, the step and the frames."""

    made = []

    def __init__(self, cpp_module, kind, num_envs, rtg_scale, temperature):
        if kind not in ("windowed", "recurrent"):
            raise _C.ConfigError(f"no policy {kind}")
        self.num_actions, self.arguments = cpp_module, (kind, num_envs, rtg_scale, temperature)
        self.seeds = np.zeros(num_envs, dtype=np.int64)
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.left = np.zeros(num_envs)
        self.observed = []
        self.made.append(self)

    def reset(self, mask, targets, seeds):
        assert mask.dtype == torch.bool and targets.dtype == torch.float64
        assert seeds.dtype == torch.int64
        mask = mask.numpy()
        self.seeds[mask], self.steps[mask] = seeds.numpy()[mask], 0
        self.left[mask] = targets.numpy()[mask]

    def act(self, frames):
        assert frames.dtype == torch.uint8 and frames.shape[1:] == (4, 84, 84)
        seen = frames.numpy().sum((1, 2, 3), dtype=np.int64)
        keys = zip(self.seeds, self.steps, seen, self.left.astype(int), strict=True)
        draws = [np.random.default_rng(np.abs(key)).integers(self.num_actions) for key in keys]
        return torch.tensor(draws)

    def observe(self, rewards):
        assert rewards.dtype == torch.float64
        self.observed.append(rewards.numpy().copy())
        self.left -= rewards.numpy()
        self.steps += 1


INFO = {"step": 30, "rtg_scale": 1.0}


def fake_policy(monkeypatch):
    """Puts the stand-in in the policy's place, and forgets those made."""
    FakePolicy.made.clear()
    monkeypatch.setattr(_C, "AtariPolicy", FakePolicy, raising=False)


def fake_run(trained, folder, monkeypatch, num_actions=4, **settings):
    """A run folder whose checkpoint loads as a stand-in; settings by dotted key."""
    fake_policy(monkeypatch)
    shutil.copytree(trained.folder, folder)
    config = dmamba.Run(folder).config
    overrides = {
        "dataset.environment": "ALE/Breakout-v5",
        "dataset.max_episode_length": 0,
        "evaluation.targets": [90],
        "evaluation.episodes": 2,
        **settings,
    }
    config.override([f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    (folder / "config.yaml").write_text(config.to_yaml())
    info = {**INFO, "num_actions": num_actions, "config": config}
    monkeypatch.setattr(evaluation.nn, "load", lambda *_: (FakeModel(num_actions), info))
    return dmamba.Run(folder)
