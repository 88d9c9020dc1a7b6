"""Whole modules with random sizes, flags and extreme values, against float64.

DMAMBA_EXAMPLES=500 python -m pytest tests/python/test_module_properties.py --hypothesis-seed=SEED
"""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from module_properties import (
    as_graph,
    check_module,
    check_step,
    inputs,
    makers,
    spread,
    values,
)

from dmamba import _C, nn

precisions = st.sampled_from([torch.float32, torch.float32, torch.bfloat16])


class OverFlags(torch.nn.Module):
    """A layer of mamba with its flags by place."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, mask, segment_starts):
        return self.layer(x, mask=mask, segment_starts=segment_starts)


@given(
    makers(), values, values, st.integers(1, 40), st.sampled_from([1, 3, 8, 20]),
    st.integers(1, 17), st.integers(1, 5), st.booleans(), precisions,
)  # fmt: skip
def test_mamba_layer(make, kind, given_kind, length, d_model, d_state, d_conv, flags, dtype):
    torch.manual_seed(make.generator.initial_seed() % 2**31)
    layer = nn.Mamba(d_model, d_state, d_conv)
    spread(layer, kind, make)
    mask = make.flags("some" if flags else "absent", 0.8, 2, length)
    starts = make.flags("some" if flags else "absent", 0.1, 2, length)
    x = inputs(make, given_kind, 2, length, d_model)
    check_module(
        OverFlags(layer), lambda m: OverFlags(m.layer._twin()), [x, mask, starts], make, dtype
    )


@given(
    makers(), values, values,
    st.sampled_from(["mamba", "attention", "convolution", "s4d"]),
    st.sampled_from(["mlp", "ssm", "none"]), st.sampled_from(["token", "none"]),
    st.sampled_from(["token", "none"]), st.integers(1, 9), st.sampled_from(["masked", "paper"]),
    precisions,
)  # fmt: skip
def test_model(make, kind, given_kind, mixer, channels, rtg, past, K, padding, dtype):
    """Embedding, norms, residual stream, mixers of both kinds and head."""
    torch.manual_seed(make.generator.initial_seed() % 2**31)
    model = nn.DMamba(
        3, 2, d_model=8, n_layer=2, context_length=K, max_timestep=20, token_mixer=mixer,
        n_head=2, d_state=4, conv_window=3, channel_mixing=channels, channel_group=2, rtg=rtg,
        past_actions=past, padding=padding, dropout=0.0, embedding_dropout=0.0,
    )  # fmt: skip
    spread(model, kind, make)
    steps = (torch.arange(K) + 5).expand(2, K)
    mask = torch.arange(K) >= torch.tensor([[0], [K // 2]])
    arguments = [inputs(make, given_kind, 2, K, n) for n in (3, 2, 1)]
    check_module(model, as_graph, [*arguments, steps, mask], make, dtype, mixer == "s4d")


@given(
    makers(), values, values, st.sampled_from(["mamba", "attention", "convolution", "s4d"]),
    st.integers(1, 9), st.sampled_from(["masked", "paper"]), precisions,
)  # fmt: skip
def test_training_step(make, kind, given_kind, mixer, K, padding, dtype):
    """The loss of a step of the trainer, and the norm of its gradient."""
    torch.manual_seed(make.generator.initial_seed() % 2**31)
    config = _C.Config.parse(
        f"model: {{d_model: 8, n_layer: 1, context_length: {K}, max_timestep: 40, d_state: 4, "
        f"n_head: 2, token_mixer: {mixer}, padding: {padding}, dropout: 0, embedding_dropout: 0}}\n"
        "training: {steps: 2, batch_size: 4, log_every: 1, device: cpu, "
        f"skip_nan_batches: 0, precision: {'fp32' if dtype == torch.float32 else 'bf16'}}}\n"
        "dataset: {rtg_scale: 10}\n"
    )
    rows, ends = 30, [6, 9, 29]
    columns = [inputs(make, given_kind, rows, n).float().numpy() for n in (3, 2)]
    rewards = inputs(make, given_kind, rows).float().numpy()
    ended = np.isin(np.arange(rows), ends).astype(np.uint8)
    store = _C.create_store(*columns, rewards, ended * 0, ended, "made", {})
    model = nn.DMamba(3, 2, config.model)
    spread(model, kind, make)
    check_step(model, config, store, make, dtype, mixer == "s4d")
