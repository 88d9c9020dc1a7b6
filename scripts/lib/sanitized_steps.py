"""Runs training steps and policies on a GPU, small, for compute-sanitizer; see scripts/test_gpu.sh.

    sanitized_steps.py eager|graph|plain [DEVICE]

`eager` launches everything one by one, and a policy acts no more often than it does without a
graph: so memory need not come from torch's cache, and each tensor is an allocation whose ends the
tools know. `graph` does the same work, and more, by replays; what a graph holds has to come from
the cache. `plain` is `eager` without frames and with matrix products of element-wise operators:
racecheck ends at cuBLAS's kernels, and initcheck does not see what they write.

What the results are is the business of tests/python/cuda.
"""

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import dmamba
from dmamba import _C, data

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "python"))
from replay_games import write_recording  # noqa: E402  (the tests' helper)

# A step runs twice before it is recorded; see src/ops/captured_work.h.
STEPS = {"eager": 2, "graph": 5, "plain": 2}


def plain_products(device: str) -> torch.library.Library:
    """Puts element-wise operators in the place of torch's products while the library lives."""
    products = torch.library.Library("aten", "IMPL")

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.float().unsqueeze(-1) * b.float().unsqueeze(-3)).sum(-2).to(a.dtype)

    def into(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(product(a, b))

    def added(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: Any) -> torch.Tensor:
        assert all(factor == 1 for factor in factors.values()), factors
        return c + product(a, b)

    key = device.partition(":")[0].upper()
    for name, function in {
        "mm": product, "mm.out": into, "bmm": product, "bmm.out": into, "addmm": added
    }.items():  # fmt: skip
        products.impl(name, function, key, allow_override=True)
    return products


class Runs:
    """All of the runs in one mode on one device."""

    def __init__(self, mode: str, device: str) -> None:
        self.mode, self.device = mode, device
        self.steps = STEPS[mode]
        self.on_gpu = device.startswith("cuda")
        self.precisions = ("fp32", "tf32", "bf16") if self.on_gpu else ("fp32",)

    def config(self, training: dict[str, Any] | None = None, **model: Any) -> _C.Config:
        """A configuration of few steps of few short segments."""
        config = _C.Config()
        config.seed = 3
        config.dataset.rtg_scale = 1000.0
        sizes = {"d_model": 64, "n_layer": 2, "context_length": 5, "max_timestep": 1000, **model}
        for key, value in sizes.items():
            setattr(config.model, key, value)
        values = {"steps": self.steps, "batch_size": 3, "warmup_steps": 2, "log_every": 1}
        graph = ("on" if self.mode == "graph" else "off") if self.on_gpu else "auto"
        values |= {"device": self.device, "graph": graph, "weight_decay": 0.1}
        for key, value in {**values, **(training or {})}.items():
            setattr(config.training, key, value)
        return config

    def train(self, config: _C.Config, store: Any, model: Any) -> None:
        """Takes the steps; their losses have to be numbers."""
        trainer = _C.Trainer(config, store, model.cpp_module)
        losses = [row["training/loss"] for row in trainer.run(seconds=1e9)]
        assert len(losses) == config.training.steps, losses
        assert all(abs(loss) < 1e6 for loss in losses), losses
        assert trainer.uses_graph == (self.on_gpu and self.mode == "graph")
        if config.training.data != "auto":
            assert trainer.data_on_device == (config.training.data == "device")

    def trajectories(self) -> None:
        """Vector states: widths, mixers, arithmetic, where the batches are drawn."""
        store = data.load("hopper-medium")
        places = ("device", "host") if self.on_gpu else ("auto",)
        cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({"precision": precision, "data": place}, {})
            for precision, place in itertools.product(self.precisions, places)
        ]
        # 32 columns are none of the fused launches'; 320 take their rows in turns and a part.
        cases += [({}, {"d_model": width}) for width in (32, 320)]
        cases += [({}, {"padding": "paper"}), ({"gradient_clip": 0.0}, {"channel_mixing": "none"})]
        cases += [({"batch_size": 40}, {"context_length": 30, "n_layer": 1})]
        # A graph for each length, and so more steps.
        cases += [({"context": "random", "contexts": [1, 5], "steps": 3 * self.steps}, {})]
        mixers = ("attention", "convolution", "s4d")
        for precision in (self.precisions[0], self.precisions[-1]):
            cases += [({"precision": precision}, {"token_mixer": [mixer]}) for mixer in mixers]
            cases += [({"precision": precision}, {"channel_mixing": "ssm", "channel_group": 4})]
        cases += [({}, {"rtg": "none"}), ({}, {"past_actions": "none"})]
        for training, keys in cases:
            config = self.config(training, **keys)
            torch.manual_seed(0)
            model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
            self.train(config, store, model)
        config = self.config()
        config.transfer.freeze, config.transfer.learning_rates = ["*bias", "*.A_log"], ["*=0.5"]
        model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
        self.train(config, store, model)
        self.several_sets(store)

    def several_sets(self, store: Any) -> None:
        """A trunk that two sets share: the steps of a set and of all are counted apart."""
        config = self.config({"steps": 3 * self.steps})  # so that both become replays
        config.dataset.rtg_scale = 0.0
        config.pretraining.sets = ["one.hdf5", "other.hdf5"]
        config.pretraining.rtg_scales = [1000.0, 100.0]
        sizes = store.state_dim, store.act_dim
        model = dmamba.nn.MultiDMamba({"one": sizes, "other": sizes}, config.model)
        self.train(config, [store, store], model)

    def games(self) -> None:
        """Frames: both encoders and positions, arithmetic, where the batches are drawn."""
        with tempfile.TemporaryDirectory() as folder:
            store = _C.open_replay(str(write_recording(Path(folder), lengths=(20, 9, 30))))
            for training, keys in self.game_cases():
                config = self.config(training, max_timestep=50, **keys)
                config.dataset.rtg_scale = 2.0
                torch.manual_seed(0)
                self.train(config, store, dmamba.nn.AtariDMamba(4, config=config.model))

    def game_cases(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What differs from a run of games to the next."""
        for precision in self.precisions:
            yield {"precision": precision}, {"context_length": 7}
        if self.on_gpu:
            yield {"data": "host", "precision": "bf16"}, {}
        yield {}, {"position": "timestep", "encoder": "impala", "n_layer": 1}
        yield {}, {"context_length": 1, "n_layer": 1}
        yield {}, {"token_mixer": ["attention", "s4d"]}

    def policies(self) -> None:
        """Both kinds over vectors, with episodes that begin anew."""
        acts = self.steps + (self.mode == "graph")
        mixers = ("mamba", "attention", "convolution", "s4d")
        for kind, width in itertools.product(("windowed", "recurrent"), (32, 64)):
            for mixer in mixers if width == 64 else mixers[:1]:
                sizes = {"d_model": width, "n_layer": 2, "context_length": 3, "max_timestep": 40}
                model = dmamba.nn.DMamba(5, 2, token_mixer=mixer, **sizes).eval().to(self.device)
                policy = _C.Policy(model.cpp_module, kind, 3, 10.0, [0.1] * 5, [2.0] * 5)
                for step in range(acts):
                    anew = torch.tensor([True, step % 2 == 0, step == 0])
                    policy.reset(anew, torch.full((3,), 50.0, dtype=torch.float64))
                    assert policy.act(torch.randn(3, 5)).isfinite().all()
                    policy.observe(torch.rand(3, dtype=torch.float64))

    def players(self) -> None:
        """Both kinds over frames."""
        acts = self.steps + (self.mode == "graph")
        for kind, position in itertools.product(("windowed", "recurrent"), ("segment", "timestep")):
            sizes = {"d_model": 64, "n_layer": 1, "context_length": 3, "max_timestep": 50}
            games = dmamba.nn.AtariDMamba(4, position=position, **sizes).eval().to(self.device)
            player = _C.AtariPolicy(games.cpp_module, kind, 3, 1.0, 1.0)
            for step in range(acts):
                anew = torch.tensor([True, step % 2 == 0, step == 0])
                player.reset(anew, torch.tensor([1.0, 5.0, 9.0]).double(), torch.tensor([1, 2, 3]))
                player.act(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8))
                player.observe(torch.full((3,), 0.5, dtype=torch.float64))


def main() -> None:
    """Runs all of it."""
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1] not in STEPS:
        raise SystemExit("usage: sanitized_steps.py eager|graph|plain [DEVICE]")
    runs = Runs(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "cuda")
    products = plain_products(runs.device) if runs.mode == "plain" else None
    torch.manual_seed(0)
    runs.trajectories()
    runs.policies()
    if products is None:
        runs.games()
        runs.players()
    if runs.on_gpu:
        torch.cuda.synchronize()
    print("every step ran")


if __name__ == "__main__":
    main()
