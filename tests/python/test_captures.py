"""What ``model.capture`` returns is what the layers compute; the output keeps its bits."""

import pytest
import torch
from mamba_reference import ReferenceMamba
from torch.nn import functional as F

import dmamba
from dmamba.nn import AtariDMamba, DMamba, Mamba, MambaBlock, captures

SIZES = {"d_model": 24, "n_layer": 2, "context_length": 7, "d_state": 5, "max_timestep": 50}
KINDS = 3


def make_batch(batch=3, K=7):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, K, dtype=torch.bool)
    mask[0, :4] = False
    return (
        torch.randn(batch, K, 5, generator=generator),
        torch.randn(batch, K, 2, generator=generator),
        torch.randn(batch, K, 1, generator=generator),
        torch.arange(K).repeat(batch, 1),
        mask,
    )


def make_model(**options):
    torch.manual_seed(0)
    return DMamba(5, 2, **SIZES | options).eval()


def reference_of(mixer, **sizes):
    twin = ReferenceMamba(**sizes)
    twin.load_state_dict(mixer.state_dict())
    return twin


def test_every_tensor_of_a_mamba_layer_is_that_of_the_equations():
    model, batch = make_model(), make_batch()
    captured = model.capture(*batch)
    assert torch.equal(captured.output, model(*batch))
    tokens_mask = batch[-1].repeat_interleave(KINDS, 1)
    stream = captured["tokens"]
    for i in range(2):
        block = model.get_submodule(f"transformer.h.{i}")
        layer = captured.layer(i)
        torch.testing.assert_close(layer["input"], stream)
        normed = F.layer_norm(stream, (24,), block.norm_mamba.weight, block.norm_mamba.bias)
        torch.testing.assert_close(layer["normed"], normed)
        mixer = reference_of(block.mamba, d_model=24, d_state=5)
        torch.testing.assert_close(layer["mixer"], mixer(normed, tokens_mask))
        for name, expected in mixer.seen.items():
            torch.testing.assert_close(layer[name], expected, msg=name)
        stream = stream + layer["mixer"]
        normed = F.layer_norm(stream, (24,), block.ln_2.weight, block.ln_2.bias)
        mlp = [block.get_parameter(f"mlp_channels.{n}") for n in
               ("0.weight", "0.bias", "2.weight", "2.bias")]  # fmt: skip
        channels = F.linear(F.gelu(F.linear(normed, *mlp[:2])), *mlp[2:])
        torch.testing.assert_close(layer["channels"], channels)
        stream = stream + channels
        retention = captured.retention(i)
        assert retention.shape == (3, 21, 48, 5)
        assert (retention[0, : 4 * KINDS] == 1).all(), "padding forgets nothing"
    final = F.layer_norm(stream, (24,), model.transformer.ln_f.weight, model.transformer.ln_f.bias)
    torch.testing.assert_close(captured["final"], final)
    assert not any(tensor.requires_grad for tensor in captured.values())
    assert set(captured) == {"tokens", "final"} | {
        f"layers.{i}.{name}" for i in range(2) for name in layer
    }
    assert set(layer) == set(captures.NAMES) - {"tokens", "final", "weights"}


def test_what_was_asked_for_and_nothing_else():
    model, batch = make_model(), make_batch()
    captured = model.capture(*batch, layers=[1], what=["delta", "states", "final"])
    assert list(captured) == ["layers.1.delta", "layers.1.states", "final"]
    assert "layers.1.delta: (3, 21, 48)" in repr(captured) and len(captured) == 3
    assert captured.layer(0) == {}
    with pytest.raises(KeyError, match=r"layers\.0\.delta.*was not captured.*layers\.1\.delta"):
        captured["layers.0.delta"]
    with pytest.raises(KeyError, match="A"):
        captured.retention(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": ["gate"]}, r"no 'gate'.*delta.*states"),
        ({"layers": [2]}, r"layers \[2\] of a module of 2"),
        ({"layers": [-1]}, r"layers \[-1\] of a module of 2, numbered from 0"),
        ({"what": []}, "must name something"),
        ({"layers": []}, "must name something"),
    ],
)
def test_what_there_is_not_is_named(options, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        make_model().capture(*make_batch(), **options)


def test_modes_gradients_and_later_calls_are_left_alone():
    model, batch = make_model(dropout=0.3, embedding_dropout=0.2), make_batch()
    expected = model(*batch)
    model.train().get_submodule("transformer.h.1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    captured = model.capture(*batch)
    assert torch.equal(captured.output, expected), "without dropout"
    again = model.eval().capture(*batch)
    assert all(torch.equal(tensor, again[name]) for name, tensor in captured.items())
    model.train().get_submodule("transformer.h.1").eval()
    with pytest.raises(RuntimeError, match="returns_to_go must be"):
        model.capture(batch[0], batch[1], batch[2][:, :3], batch[3])
    assert modes == {name: module.training for name, module in model.named_modules()}
    model(*batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(captured) == 2 + 2 * 13


def test_attention_weights():
    model, batch = make_model(token_mixer="attention", n_head=4), make_batch()
    captured = model.capture(*batch)
    assert torch.equal(captured.output, model(*batch))
    weights = captured["layers.0.weights"]
    assert weights.shape == (3, 4, 21, 21) and "layers.0.delta" not in captured
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 21))
    assert (weights.triu(1) == 0).all() and (weights[0, :, 12:, :12] == 0).all()
    block = model.get_submodule("transformer.h.0.attention")
    q, k, v = F.linear(
        captured["layers.0.normed"], block.c_attn.weight, block.c_attn.bias
    ).chunk(3, -1)  # fmt: skip
    heads = weights @ v.unflatten(2, (4, 6)).transpose(1, 2)
    mixed = F.linear(
        heads.transpose(1, 2).flatten(2), block.c_proj.weight, block.c_proj.bias
    )  # fmt: skip
    torch.testing.assert_close(captured["layers.0.mixer"], mixed)


def test_hybrids_and_channel_mixing():
    model = make_model(token_mixer=["s4d", "mamba"], d_state=6, channel_mixing="ssm",
                       channel_group=8)  # fmt: skip
    captured = model.capture(*make_batch())
    assert set(captured.layer(0)) == {"input", "normed", "mixer", "channels"}
    assert captured["layers.1.states"].shape == (3, 21, 48, 6), "the token mixer's own"
    bare = make_model(channel_mixing="none").capture(*make_batch(), layers=[0])
    assert "layers.0.channels" not in bare and "layers.0.y" in bare


def test_layers_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    mamba, block = Mamba(16, d_state=3), MambaBlock(16, d_state=3).eval()
    captured = mamba.capture(x, what=["u", "states"])
    assert list(captured) == ["u", "states"] and torch.equal(captured.output, mamba(x))
    assert mamba.capture(x).retention().shape == (2, 9, 32, 3)
    inside = block.capture(x)
    torch.testing.assert_close(inside.output, x + inside["mixer"] + inside["channels"])
    with pytest.raises(dmamba.ConfigError, match="is one layer"):
        mamba.capture(x, layers=[0])


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "paper"},
        {"rtg": "none"},
        {"past_actions": "none", "token_mixer": "convolution"},
        {"token_mixer": ["s4d", "attention"], "d_state": 6, "n_head": 3},
        {"channel_mixing": "ssm", "channel_group": 8},
        {"channel_mixing": "none", "d_conv": 1, "expand": 1, "dt_rank": 3},
    ],
)
def test_what_is_captured_leads_to_the_output(options):
    model, batch = make_model(**options), make_batch()
    captured = model.capture(*batch)
    count = captured["final"].shape[1] // 7
    place = 0 if options.get("rtg") == "none" else 1
    head = model.get_submodule("predict_action.0")
    states = captured["final"][:, place::count]
    expected = torch.tanh(F.linear(states, head.weight, head.bias))
    torch.testing.assert_close(captured.output, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_storage_is_that_of_the_arithmetic(dtype):
    model, batch = make_model(), make_batch()
    if dtype == torch.float64:
        model.double()
        batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
        captured = model.capture(*batch)
        assert {t.dtype for t in captured.values()} == {torch.float64}
        return
    with torch.autocast("cpu", dtype=dtype):
        captured = model.capture(*batch)
        assert torch.equal(captured.output, model(*batch))
    layer = captured.layer(0)
    assert {n for n, t in layer.items() if t.dtype == torch.float32} >= {"delta", "A", "states"}
    assert {layer[n].dtype for n in ("u", "z", "B", "y")} == {torch.bfloat16}


@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_games(position):
    torch.manual_seed(0)
    model = AtariDMamba(4, d_model=16, n_layer=1, context_length=3, max_timestep=20,
                        position=position).eval()  # fmt: skip
    with torch.no_grad():
        for name in ("pos_emb", "global_pos_emb"):
            model.get_parameter(name).normal_()
    batch = (
        torch.randint(0, 256, (2, 3, 4, 84, 84), dtype=torch.uint8),
        torch.randint(0, 4, (2, 3)),
        torch.randn(2, 3, 1),
        torch.tensor([0, 5]),
    )
    mask = torch.tensor([[False, True, True], [True, True, True]])
    padded = model.capture(*batch, mask, what=["final"])
    torch.testing.assert_close(
        padded.output[mask], F.linear(padded["final"][:, 1::KINDS], model.head.weight)[mask]
    )
    captured = model.capture(*batch)
    assert torch.equal(captured.output, model(*batch))
    assert captured["layers.0.delta"].shape == (2, 9, 32)
    logits = F.linear(captured["final"][:, 1::KINDS], model.head.weight)
    torch.testing.assert_close(captured.output, logits)
    bare = AtariDMamba(4, d_model=16, n_layer=1, context_length=3, max_timestep=20, rtg="none",
                       position=position, past_actions="none").eval()  # fmt: skip
    captured = bare.capture(*batch)
    torch.testing.assert_close(captured.output, F.linear(captured["final"], bare.head.weight))
