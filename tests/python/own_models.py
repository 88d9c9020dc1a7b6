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
