"""Checkpoints of the author's code (github.com/Toshihiro-Ota/decision-mamba)."""

from __future__ import annotations

import os
import pickle

import torch
from torch import Tensor

from ._C import CheckpointError
from .nn import DMamba


def _read_state_dict(path: str) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of torch.save: {reason}") from error
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state_dict of tensors")
    return state


def from_official(path: str | os.PathLike[str], context_length: int = 20) -> DMamba:
    """Loads a gym checkpoint of the author's code.

    Sizes are read off the tensors. The model has ``padding="paper"``, as it was trained.

    Args:
        path: The ``.cpt`` file that his scripts save; read with ``weights_only=True``.
        context_length: K, environment steps; his gym experiments use 20. The file doesn't tell.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: Where the file cannot be read or a tensor is missing or of another shape.
    """
    path = os.fspath(path)
    state = _read_state_dict(path)
    try:
        d_model, state_dim = state["embed_state.weight"].shape
        act_dim = state["embed_action.weight"].shape[1]
        first = "transformer.h.0.mamba."
        d_inner, d_state = state[first + "A_log"].shape
        options = {
            "d_model": d_model,
            "d_state": d_state,
            "d_conv": state[first + "conv1d.weight"].shape[2],
            "dt_rank": state[first + "dt_proj.weight"].shape[1],
            "expand": d_inner // d_model,
            "max_timestep": state["embed_timestep.weight"].shape[0],
        }
    except KeyError as error:
        raise CheckpointError(
            f"{path}: has no tensor {error}; this reads gym checkpoints of decision-mamba"
        ) from None
    n_layer = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
    mlp = "transformer.h.0.mlp_channels.0.weight" in state
    model = DMamba(
        state_dim,
        act_dim,
        n_layer=n_layer,
        context_length=context_length,
        channel_mixing="mlp" if mlp else "none",
        padding="paper",
        **options,
    )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return model.eval()
