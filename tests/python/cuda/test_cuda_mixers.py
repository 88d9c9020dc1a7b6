"""The token mixers, channel mixers and choices of tokens on a GPU, beside the CPU's."""

import numpy as np
import pytest
import torch
from support import needs_cuda, poison, write_recording
from test_cuda_fused_step import make, window
from test_cuda_training import bits, largest_relative_difference, losses
from test_mixers import EACH_VARIANT, play

import dmamba
from dmamba import _C

pytestmark = needs_cuda


def keys_of(options):
    mixers = options.get("token_mixer", ["mamba"])
    mixers = [mixers] if isinstance(mixers, str) else mixers
    return {**options, "token_mixer": mixers}


@EACH_VARIANT
def test_the_gradients_are_those_of_float64(options):
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_layer": 2, "max_timestep": 11, "context_length": 8}
    reference = dmamba.nn.DMamba(13, 9, **sizes, **options).eval()
    fused = dmamba.nn.DMamba(13, 9, **sizes, **options).eval()
    fused.load_state_dict(reference.state_dict())
    reference, fused = reference.double(), fused.to("cuda")
    *inputs, mask = window(13, 9)
    weights = torch.randn(5, 7, 9, dtype=torch.float64)
    (reference(*inputs, mask) * weights).sum().backward()
    poison()
    on_gpu = [x.float().cuda() if x.is_floating_point() else x.cuda() for x in inputs]
    (fused(*on_gpu, mask.cuda()) * weights.float().cuda()).sum().backward()
    for (name, expected), got in zip(reference.named_parameters(), fused.parameters(), strict=True):
        # Zero where the last layer's tokens of this kind lead to no action.
        scale = expected.grad.abs().max().clamp_min(1e-12)
        error = (got.grad.cpu().double() - expected.grad).abs().max() / scale
        assert error <= 5e-5, f"{name}: {error:.2e}"


@EACH_VARIANT
def test_losses_with_dropout_are_the_cpus(options):
    got = losses(make("cuda", 64, keys_of(options))[0], 20)
    expected = losses(make("cpu", 64, keys_of(options))[0], 20)
    assert largest_relative_difference(got[:5], expected[:5]) <= 1e-4


@EACH_VARIANT
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_gives_the_bits_of_single_launches_and_of_a_resumed_run(
    options, precision, tmp_path
):
    folders = []
    for name, training in (("graph", {"graph": "on"}), ("eager", {"graph": "off"})):
        trainer, _ = make("cuda", 64, keys_of(options), precision=precision, **training)
        losses(trainer, 40)
        assert trainer.uses_graph == (name == "graph")
        folders.append(tmp_path / name)
        trainer.save(str(folders[-1]))
    first, _ = make("cuda", 64, keys_of(options), precision=precision)
    losses(first, 17)
    first.save(str(tmp_path / "part"))
    second, _ = make("cuda", 64, keys_of(options), precision=precision)
    second.load(str(tmp_path / "part"))
    losses(second, 23)
    folders.append(tmp_path / "resumed")
    second.save(str(folders[-1]))
    assert bits(folders[0]) == bits(folders[1]) == bits(folders[2])


@EACH_VARIANT
def test_policies_agree(options):
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_layer": 2, "context_length": 8, "max_timestep": 50}
    model = dmamba.nn.DMamba(5, 2, **sizes, **options).eval()
    ends = np.array([3, 5, 8, 4])

    def actions(kind):
        policy = _C.Policy(model.cpp_module, kind, 4, 10.0, [0.1] * 5, [2.0] * 5)
        return play(policy, 4, 20, ends)

    expected = actions("windowed")
    model.to("cuda")
    for kind in ("windowed", "recurrent"):
        torch.testing.assert_close(actions(kind), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mixer", ["attention", "convolution", "s4d"])
def test_games_train(mixer, tmp_path):
    store = _C.open_replay(str(write_recording(tmp_path / "games", lengths=(40, 9, 60))))
    rows = {}
    for device in ("cuda", "cpu"):
        config = _C.Config()
        config.seed, config.dataset.rtg_scale = 3, 1.0
        config.model.d_model, config.model.n_layer, config.model.n_head = 64, 2, 8
        config.model.token_mixer, config.model.context_length = [mixer], 10
        config.training.steps, config.training.batch_size = 12, 8
        config.training.log_every, config.training.device = 1, device
        torch.manual_seed(3)
        model = dmamba.nn.AtariDMamba(6, config=config.model)
        rows[device] = losses(_C.Trainer(config, store, model.cpp_module), 12)
    assert largest_relative_difference(rows["cuda"][:4], rows["cpu"][:4]) <= 1e-3
