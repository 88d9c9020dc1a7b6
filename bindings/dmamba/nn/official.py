"""Checkpoints of the author's code (github.com/Toshihiro-Ota/decision-mamba)."""

from __future__ import annotations

import os
import zipfile
from typing import Any, NoReturn

import torch
from torch import Tensor

from dmamba._C import CheckpointError
from dmamba.nn import AtariDMamba, DMamba

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _File:
    """A checkpoint's tensors, each of which is checked before it is believed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tensors = self._read()

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}") from None

    def _read(self) -> dict[str, Tensor]:
        try:
            with open(self.path, "rb") as file:
                if zipfile.is_zipfile(file):  # torch.load itself does not look at the checksums
                    with zipfile.ZipFile(file) as archive:
                        self._check_sizes(archive)
                        damaged = archive.testzip()
                    if damaged is not None:
                        self.fail(f"is damaged: the checksum of its part {damaged} is wrong")
                file.seek(0)
                saved = torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except FileNotFoundError:
            self.fail("there is no such file")
        except OSError as error:
            self.fail(f"cannot be read: {error.strerror or error}")
        except Exception as error:  # a damaged file raises almost anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.fail(f"not a checkpoint of torch.save, or a damaged one: {reason}")
        tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else None
        if not isinstance(tensors, dict) or not tensors:
            self.fail("holds no state_dict of tensors")
        for name, tensor in tensors.items():
            self._check(name, tensor)
        return tensors

    def _check_sizes(self, archive: zipfile.ZipFile) -> None:
        """Parts that are larger than the file are no torch.save's, and could fill the memory."""
        size = os.path.getsize(self.path)
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            self.fail("is compressed, which torch.save never does; save it again")
        if sum(part.file_size for part in parts) > size:
            self.fail(f"is damaged: its parts claim more than its {size} bytes")

    def _check(self, name: object, tensor: object) -> None:
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            self.fail(f"holds no state_dict of tensors: {name!r} in it is a {kind}")
        if tensor.dtype not in _DTYPES:
            self.fail(f"tensor '{name}' is {tensor.dtype}, but parameters are floating point")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            self.fail(f"tensor '{name}' is {tensor.layout} on {tensor.device}: it holds no values")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            self.fail(f"tensor '{name}' claims {list(tensor.shape)}, more than the file holds")
        if not bool(tensor.isfinite().all()):
            self.fail(f"tensor '{name}' holds NaN or infinity")

    def sizes(self, name: str, dimensions: int) -> list[int]:
        """The sizes of a tensor of which the model's are made."""
        if name not in self.tensors:
            self.fail(f"has no tensor '{name}'; this reads checkpoints of decision-mamba")
        sizes = list(self.tensors[name].shape)
        if len(sizes) != dimensions or 0 in sizes:
            self.fail(
                f"tensor '{name}' is {sizes}; it must have {dimensions} sizes, none of them 0"
            )
        return sizes

    def require(self, name: str, sizes: list[int]) -> None:
        found = self.sizes(name, len(sizes))
        if found != sizes:
            self.fail(f"tensor '{name}' is {found}, must be {sizes} to go with the other tensors")


def _layer_options(file: _File, d_model: int, layers: str) -> dict[str, Any]:
    """The layers' sizes, from tensors that fit each other.

    Each layer's largest tensor is looked at too, so that no damaged file asks for a model much
    larger than itself.
    """
    first = f"{layers}0.mamba."
    d_inner, d_state = file.sizes(f"{first}A_log", 2)
    dt_rank = file.sizes(f"{first}dt_proj.weight", 2)[1]
    if d_inner % d_model != 0:
        file.fail(f"'{first}A_log' has {d_inner} channels, no multiple of d_model = {d_model}")
    place = layers.count(".")
    n_layer = len({name.split(".")[place] for name in file.tensors if name.startswith(layers)})
    for layer in range(n_layer):
        mamba = f"{layers}{layer}.mamba."
        file.require(f"{mamba}in_proj.weight", [2 * d_inner, d_model])
        file.require(f"{mamba}x_proj.weight", [dt_rank + 2 * d_state, d_inner])
    return {
        "d_model": d_model,
        "n_layer": n_layer,
        "d_state": d_state,
        "d_conv": file.sizes(f"{first}conv1d.weight", 3)[2],
        "dt_rank": dt_rank,
        "expand": d_inner // d_model,
        "channel_mixing": "mlp" if f"{layers}0.mlp_channels.0.weight" in file.tensors else "none",
        "padding": "paper",
    }


def _gym_model(file: _File, context_length: int) -> DMamba:
    d_model, state_dim = file.sizes("embed_state.weight", 2)
    return DMamba(
        state_dim,
        file.sizes("embed_action.weight", 2)[1],
        **_layer_options(file, d_model, "transformer.h."),
        context_length=context_length,
        max_timestep=file.sizes("embed_timestep.weight", 2)[0],
    )


def _atari_model(file: _File, context_length: int | None) -> AtariDMamba:
    # His second norm has another name than in his gym code; an embedding in his files is not used.
    file.tensors = {
        name.replace(".ln2.", ".ln_2."): tensor
        for name, tensor in file.tensors.items()
        if name != "tok_emb.weight"
    }
    _, places, d_model = file.sizes("pos_emb", 3)
    steps = (places - 1) // 3
    if steps < 1 or places != 3 * steps + 1:
        file.fail(f"tensor 'pos_emb' has {places} places; it must have 3 K + 1")
    if context_length not in (None, steps):
        file.fail(f"holds a model with places for K = {steps}, not {context_length}")
    return AtariDMamba(
        file.sizes("head.weight", 2)[0],
        **_layer_options(file, d_model, "blocks."),
        context_length=steps,
        max_timestep=file.sizes("global_pos_emb", 3)[1],
    )


def from_official(
    path: str | os.PathLike[str], context_length: int | None = None
) -> DMamba | AtariDMamba:
    """Loads a checkpoint of the author's code, gym's or Atari's.

    Sizes are read off the tensors. The model has ``padding="paper"``, as it was trained.

    Args:
        path: The ``.cpt`` file that his scripts save; read with ``weights_only=True``.
        context_length: K, environment steps. A gym file doesn't tell; None: 20, as in his
            experiments. An Atari file does.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        CheckpointError: Where the file cannot be read or is damaged, or a tensor is missing, left
            over, of another shape, not floating point or not finite; names file and tensor.
        ConfigError: For a ``context_length`` below 1.
    """
    file = _File(os.fspath(path))
    model: DMamba | AtariDMamba
    if "global_pos_emb" in file.tensors:
        model = _atari_model(file, context_length)
    else:
        model = _gym_model(file, 20 if context_length is None else context_length)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        file.require(name, list(parameter.shape))
    for name in file.tensors:
        if name not in parameters:
            file.fail(f"tensor '{name}' has no place in a model of {len(parameters)} tensors")
    model.load_state_dict(file.tensors)
    return model.eval()
