"""The memory horizon is that of the model itself, and what is proposed follows from the numbers."""

import numpy as np
import pytest
import torch
from conftest import write_dataset

import dmamba
from dmamba import nn
from dmamba.commands import main
from dmamba.evaluation import horizon


def by_hand(lengths, K, moved_back=False):
    """Every transition's segment, one after the other."""
    segments = []
    for length in lengths:
        for start in range(length):
            segments.append(min(K, length if moved_back else length - start))
    segments = np.array(segments)
    return (segments < K).mean(), (K - segments).sum() / (K * len(segments))


@pytest.mark.parametrize("moved_back", [False, True])
@pytest.mark.parametrize("K", [1, 2, 7, 12, 13, 31, 129])
def test_padding_is_that_of_every_segment_counted(K, moved_back):
    lengths = np.array([30, 12, 45, 7, 1, 21])
    expected = by_hand(lengths, K, moved_back)
    assert horizon.padding_shares(lengths, K, moved_back) == pytest.approx(expected)


def make_batch(model, batch=3, steps=7):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[0, :4] = False
    return {
        "states": torch.randn(batch, steps, 11, generator=generator),
        "actions": torch.randn(batch, steps, 3, generator=generator),
        "returns_to_go": torch.randn(batch, steps, 1, generator=generator),
        "timesteps": torch.arange(steps).expand(batch, steps).contiguous(),
        "mask": mask,
    }


def test_half_life_of_steps_and_rates_that_are_known():
    model = nn.DMamba(11, 3, d_model=16, n_layer=1, d_state=4).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_proj.weight"):
                parameter.zero_()
            if name.endswith("dt_proj.bias"):
                parameter.fill_(float(np.log(np.expm1(0.1))))  # softplus of it is 0.1
            if name.endswith("A_log"):
                parameter.copy_(torch.log(torch.tensor([1.0, 2.0, 5.0, 10.0])).expand(32, 4))
        (lives,) = horizon.half_lives(model, make_batch(model))
    expected = np.log(2) / (0.1 * np.array([1.0, 2.0, 5.0, 10.0]))
    np.testing.assert_allclose(lives, np.tile(expected, (32, 1)), rtol=1e-5)


def test_proposals(dataset):
    store = dmamba.data.load(dataset)
    result = horizon.describe(store, [2, 5, 20, 45, 46])
    assert list(result["lengths"]) == [2, 5, 20, 45], "no episode fills 46"
    assert result["proposed"] == 20 and result["horizon"] is None
    assert horizon._propose(result["lengths"], 3.0)[0] == 5
    assert horizon._propose(result["lengths"], 21.0)[0] == 20
    with pytest.raises(dmamba.ConfigError, match="no episode fills 50 steps, the longest has 45"):
        horizon.describe(store, [50, 60])
    with pytest.raises(dmamba.ConfigError, match="at least 1"):
        horizon.describe(store, [0, 5])


def test_command_of_a_run_and_of_a_configuration(trained, tmp_path, capsys):
    assert main(["context", str(trained.folder)]) == 0
    text = capsys.readouterr().out
    assert "half-life, tokens" in text and "proposed K" in text
    path = tmp_path / "config.yaml"
    path.write_text(f"dataset: {{path: {write_dataset(tmp_path / 'other.hdf5')}}}\n")
    assert main(["context", str(path), "model.context_length=7", "--lengths", "3", "7"]) == 0
    text = capsys.readouterr().out
    assert "half-life" not in text and "proposed K   7" in text
    assert main(["context", str(trained.folder), "seed=1"]) == 2
    assert "settings go with a CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"rtg": "none"}, 2), ({"past_actions": "none"}, 2), ({"channel_mixing": "ssm"}, 3)],
)
def test_other_tokens_and_channel_mixers(options, tokens, dataset):
    model = nn.DMamba(11, 3, d_model=16, n_layer=2, **options).eval()
    assert [x.shape for x in horizon.half_lives(model, make_batch(model))] == [(32, 16)] * 2
    info = {"rtg_scale": 1.0, "state_mean": [0.0] * 11, "state_std": [1.0] * 11}
    result = horizon.describe(dmamba.data.load(dataset), [5], model, info)
    longest = max(row[horizon.QUANTILES.index(0.9)] for row in result["half_lives"])
    assert result["horizon"] == pytest.approx(longest / tokens)


def test_mixers_without_step_sizes_are_refused():
    model = nn.DMamba(11, 3, d_model=16, n_layer=2, token_mixer=["mamba", "attention"], n_head=2)
    with pytest.raises(dmamba.ConfigError, match="attention has no delta"):
        horizon.half_lives(model, make_batch(model))
