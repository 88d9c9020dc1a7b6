"""The memory horizon is that of the model itself, and what is proposed follows from the numbers."""

import numpy as np
import pytest
import torch
from conftest import write_dataset

import dmamba
from dmamba import horizon, nn
from dmamba.commands import main


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


@pytest.mark.parametrize("padding", ["masked", "paper"])
@pytest.mark.parametrize("channel_mixing", ["mlp", "none"])
def test_the_walk_through_the_layers_is_the_models_own(padding, channel_mixing):
    torch.manual_seed(0)
    model = nn.DMamba(
        11, 3, d_model=24, n_layer=3, padding=padding, channel_mixing=channel_mixing
    ).eval()
    batch = make_batch(model)
    with torch.no_grad():
        lives, actions = horizon._walk(model, batch)
        expected = model(*batch.values())
    torch.testing.assert_close(actions[batch["mask"]], expected[batch["mask"]])
    assert [x.shape for x in lives] == [(48, 16)] * 3


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
    "options", [{"rtg": "none"}, {"past_actions": "none"}, {"channel_mixing": "ssm"}]
)
def test_models_that_the_horizon_does_not_follow_are_refused(options):
    model = nn.DMamba(11, 3, d_model=16, n_layer=1, **options).eval()
    with pytest.raises(dmamba.ConfigError, match=f"model.{next(iter(options))}"):
        horizon.half_lives(model, make_batch(model))
