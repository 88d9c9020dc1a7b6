"""Models such as a user writes; a program of its own trains one until it is killed.

python own_models.py CONFIG.json FOLDER STEP
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import dmamba


class Wrapped(nn.Module):
    """The built-in model within a module."""

    def __init__(self, state_dim, act_dim, config):
        super().__init__()
        self.inner = dmamba.nn.DMamba(state_dim, act_dim, config=config)

    def forward(self, states, actions, returns_to_go, timesteps, mask):
        return self.inner(states, actions, returns_to_go, timesteps, mask)


class Net(nn.Module):
    """Torch's layers around a Mamba block: dropout, an embedding, BatchNorm, a replaced buffer."""

    def __init__(self, state_dim, act_dim, config):
        super().__init__()
        d = config.d_model
        self.place = nn.Embedding(config.max_timestep, d)
        self.inputs = nn.Linear(state_dim + 1 + act_dim, d)
        self.mixer = dmamba.nn.Mamba(d)
        self.norm = nn.BatchNorm1d(d)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(d, act_dim)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, states, actions, returns_to_go, timesteps, mask):
        if self.training:
            self.calls = self.calls + 1
        before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
        x = self.inputs(torch.cat([states, returns_to_go, before], 2)) + self.place(timesteps)
        x = x + self.scale * self.mixer(self.dropout(x), mask=mask)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return torch.tanh(self.head(x))


class Poisoned(nn.Module):
    """A small net whose loss or gradient is not finite at some of its calls in training.

    ``calls`` counts steps in a buffer, so that a resumed run goes on counting.
    """

    def __init__(self, state_dim, act_dim, config, *, bad, what, value):
        super().__init__()
        self.bad, self.what, self.value = bad, what, value
        self.layers = nn.Sequential(
            nn.Linear(state_dim + 1, config.d_model), nn.GELU(), nn.Linear(config.d_model, act_dim)
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bad_steps", torch.tensor(bad or [-1]), persistent=False)

    @staticmethod
    def at(*bad, what="loss", value=float("inf")):
        """A factory of models that are poisoned at these steps."""

        def make(state_dim, act_dim, config):
            return Poisoned(state_dim, act_dim, config, bad=list(bad), what=what, value=value)

        return make

    def forward(self, states, actions, returns_to_go, timesteps, mask):
        out = self.layers(torch.cat([states, returns_to_go], 2))
        if not self.training:
            return out
        poison = torch.where((self.bad_steps == self.calls).any(), self.value, 1.0)
        self.calls += 1
        if self.what == "loss":
            return out * poison
        return out + 1e-3 * (out - out.detach()) * poison  # the value is as it was


class KillsItself(dmamba.Callback):
    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        if row["step"] >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    dmamba.train(
        json.loads(Path(sys.argv[1]).read_text()),
        output=sys.argv[2],
        progress=False,
        evaluate=False,
        callbacks=[KillsItself(int(sys.argv[3]))],
        model=Net,
    )
