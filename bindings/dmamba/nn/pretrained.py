"""Models as folders in the Hugging Face form, with what it takes to evaluate them elsewhere.

    config.json         the kind of model, its sizes, normalisation, step, and the configuration of
                        the run it comes from: model.*, environment, targets, rtg_scale, ...
    model.safetensors   the parameters, under the names of ``state_dict()``
    README.md           a model card: scores, dataset, how to use it and to repeat the training

Folders are local: nothing here goes to a network. ``dmamba.nn.load``, ``dmamba.evaluate`` and
whatever else takes a checkpoint takes such a folder, too.
"""

from __future__ import annotations

import functools
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from dmamba import _C, _build_info
from dmamba._C import CheckpointError
from dmamba.common.files import replacing_folder, write_json, write_text
from dmamba.nn import cards

if TYPE_CHECKING:
    from dmamba.nn import AtariDMamba, DMamba

CONFIG, PARAMETERS, CARD = FILES = ("config.json", "model.safetensors", "README.md")
_TYPE = "dmamba"
_FORMAT = 1
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_SIZES = {"DMamba": ("state_dim", "act_dim"), "AtariDMamba": ("num_actions",)}
_KINDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
_INFO = ("config", "rtg_scale", "state_mean", "state_std", "step", "context_length")
# What follows from the model, or is of those that have no such folder.
_LOADED = ("state_dim", "act_dim", "num_actions", "sets", "name", "steps", "external_model")


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of this form, and no checkpoint of a run."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not (folder / "state.json").is_file()


def save(
    model: DMamba | AtariDMamba,
    folder: str | os.PathLike[str],
    info: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the folder: whoever looks finds a whole one, or none.

    Args:
        model: Its parameters and options.
        folder: To be made; one that this function made before is replaced.
        info: What :func:`dmamba.nn.load` says of a checkpoint, or a dict with some of its keys:
            ``config`` (a :class:`dmamba.Config`: environment, targets, ...), ``state_mean`` and
            ``state_std`` (state_dim numbers each), ``rtg_scale``, ``step``, ``context_length`` (K
            to act with, where a schedule or a bandit chose it). Without them the folder holds the
            model alone: no environment is known to evaluate it in.
        evaluation: What :func:`dmamba.evaluate` returned, for the card.

    Returns:
        The folder.

    Raises:
        Error: The folder holds other files, or cannot be written.
        TypeError: Another key in ``info``.
    """
    folder = Path(folder).absolute()
    _refuse_other_files(folder)
    content = _describe(model, dict(info or {}))
    try:
        with replacing_folder(folder) as fresh:
            _write_parameters(model, fresh / PARAMETERS)
            write_json(fresh / CONFIG, content)
            write_text(fresh / CARD, cards.write(folder.name, content, evaluation))
    except OSError as error:
        raise _C.Error(f"{folder}: cannot be written: {error.strerror or error}") from None
    return folder


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json says, checked: as ``dmamba.nn.load`` returns it, and ``kind``, ``dtype``.

    Raises:
        CheckpointError: The file is missing, damaged, of something else, or does not go with the
            parameters' file; names file and key.
    """
    return _Reader(Path(path)).read()


def load_parameters(path: str | os.PathLike[str], model: DMamba | AtariDMamba) -> None:
    """Copies the folder's parameters into the model.

    Raises:
        CheckpointError: They do not fit, or the file is damaged; names the tensor.
    """
    file = Path(path) / PARAMETERS
    with open(file, "rb") as stream:
        if stream.read(24) == b"version https://git-lfs.":
            raise CheckpointError(
                f"{file}: a pointer of Git LFS, not the parameters; fetch them with git lfs pull"
            )
    _C.load_parameters(os.fspath(path), model.cpp_module)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError, which says where such folders come from, unless there is one."""
    name = os.fspath(path)
    if Path(name).is_dir():
        return
    message = f"{name}: no such folder"
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and "." not in parts[0]:
        message += (
            ". dmamba reads local folders only; if this is a model of the Hugging Face hub, fetch "
            f"it first: pip install huggingface_hub; hf download {name} --local-dir {parts[1]}"
        )
    raise CheckpointError(message)


def _refuse_other_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise _C.Error(f"{folder}: not a folder; choose another name")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise _C.Error(
            f"{folder}: holds other files ({', '.join(others[:3])}), which would be lost; choose "
            "another folder"
        )


def _write_parameters(model: DMamba | AtariDMamba, path: Path) -> None:
    """Writes a safetensors file: its length, the header as JSON, the tensors end to end."""
    names = {torch.float32: "F32", torch.float64: "F64"}
    header: dict[str, Any] = {}
    arrays, offset = [], 0
    for name, parameter in model.named_parameters():
        if parameter.dtype not in names:
            raise _C.Error(
                f"save_pretrained: parameter '{name}' is {parameter.dtype}, but models are kept in "
                "float32 or float64; call model.float() first"
            )
        array = parameter.detach().cpu().contiguous().numpy()
        header[name] = {
            "dtype": names[parameter.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
        arrays.append(array)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    checksum = functools.reduce(lambda known, part: zlib.crc32(part, known), (text, *arrays), 0)
    # "format" is what transformers asks for; the checksum is as in src/train/safetensors.cpp.
    header["__metadata__"] = {"format": "pt", "dmamba.crc32": f"{checksum:08x}"}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _describe(model: DMamba | AtariDMamba, info: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    if unknown := sorted(set(info) - {*_INFO, *_LOADED}):
        raise TypeError(f"save_pretrained: info has no key '{unknown[0]}'; it has {list(_INFO)}")
    kind = type(model).__name__
    config = info.get("config")
    whole = _C.Config() if config is None else config.copy()
    whole.model = model.config
    if "rtg_scale" in info:
        whole.dataset.rtg_scale = info["rtg_scale"]
    for section, field in (("dataset", "path"), ("transfer", "init_from"), ("dataset", "cache")):
        part = getattr(whole, section)
        setattr(part, field, os.path.basename(getattr(part, field).rstrip("/")))
    state_dim = model.state_dim if kind == "DMamba" else 0
    return {
        "model_type": _TYPE,
        "architectures": [kind],
        "format": _FORMAT,
        "dmamba_version": _build_info.version,
        "torch_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **{name: getattr(model, name) for name in _SIZES[kind]},
        "state_mean": [float(x) for x in info.get("state_mean", [0.0] * state_dim)],
        "state_std": [float(x) for x in info.get("state_std", [1.0] * state_dim)],
        "step": int(info.get("step", 0)),
        "context_length": int(info.get("context_length", 0)),
        "config": whole.to_dict(),
    }


class _Reader:
    """A config.json, each of whose values is checked before it is believed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / CONFIG

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}") from None

    def read(self) -> dict[str, Any]:
        content = self._parse()
        kind = content["architectures"]
        if kind not in [[name] for name in _SIZES]:
            self.fail(f"architectures is {kind}; known are {', '.join(f'[{n}]' for n in _SIZES)}")
        sizes = dict.fromkeys(("state_dim", "act_dim", "num_actions"), 0)
        for name in _SIZES[kind[0]]:
            sizes[name] = self._number(content, name, 1)
        dtype = self._value(content, "torch_dtype", str)
        if dtype not in _DTYPES:
            self.fail(f"torch_dtype is {dtype!r}; known are {', '.join(_DTYPES)}")
        config = self._config(content)
        self._check_size(config.model, 8 if dtype == "float64" else 4)
        statistics = {
            name: self._floats(content, name, sizes["state_dim"])
            for name in ("state_mean", "state_std")
        }
        if any(value <= 0 for value in statistics["state_std"]):
            self.fail("state_std holds values that are not above 0")
        return {
            "kind": kind[0],
            "dtype": _DTYPES[dtype],
            **sizes,
            **statistics,
            "step": self._number(content, "step", 0),
            "context_length": self._number({"context_length": 0, **content}, "context_length", 0),
            "sets": [],
            "external_model": "",
            "config": config,
            "rtg_scale": config.dataset.rtg_scale,
        }

    def _parse(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            self.fail(f"cannot be read: {error.strerror or error}")
        except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
            self.fail(f"damaged, not JSON ({error})")
        if not isinstance(content, dict) or content.get("model_type") != _TYPE:
            found = content.get("model_type") if isinstance(content, dict) else None
            what = "no model_type" if found is None else f"model_type {found!r}"
            self.fail(f"not of a dmamba model, which has model_type {_TYPE!r}: this has {what}")
        if content.get("format") != _FORMAT:
            self.fail(
                f"format {content.get('format')!r} is not known to this version, which reads "
                f"{_FORMAT}; it was written by dmamba {content.get('dmamba_version')}"
            )
        for key in ("architectures", "torch_dtype", "state_mean", "state_std", "step", "config"):
            if key not in content:
                self.fail(f"has no '{key}'")
        return content

    def _value(self, content: dict[str, Any], key: str, kind: type) -> Any:
        value = content.get(key)
        if type(value) is not kind:
            self.fail(f"'{key}' must be {_KINDS[kind]}, got {value!r}")
        return value

    def _number(self, content: dict[str, Any], key: str, least: int) -> int:
        value = self._value(content, key, int)
        if not least <= value < 2**31:
            self.fail(f"'{key}' must be at least {least} (and below 2^31), got {value}")
        return value

    def _floats(self, content: dict[str, Any], key: str, size: int) -> list[float]:
        values = self._value(content, key, list)
        numbers = [v for v in values if type(v) in (int, float) and math.isfinite(v)]
        if len(values) != size or len(numbers) != size:
            self.fail(f"'{key}' must be {size} finite numbers, as many as a state has")
        return [float(v) for v in numbers]

    def _config(self, content: dict[str, Any]) -> _C.Config:
        config = self._value(content, "config", dict)
        try:  # JSON is YAML, so that the same strict reader checks every key
            return _C.Config.parse(json.dumps(config), f"{self.path} (config)")
        except _C.ConfigError as error:
            raise CheckpointError(str(error)) from None

    def _check_size(self, model: _C.ModelConfig, number_bytes: int) -> None:
        """No damaged file asks for a model much larger than its parameters are."""
        parameters = self.folder / PARAMETERS
        if not parameters.is_file():
            self.fail(f"there is no {PARAMETERS} beside it")
        least = model.d_model * (model.max_timestep + 2 * model.n_layer)
        mambas = model.token_mixer.count("mamba") * model.n_layer // len(model.token_mixer)
        d_inner = model.expand * model.d_model
        least += mambas * d_inner * (3 * model.d_model + model.d_conv + 3 * model.d_state)
        held = parameters.stat().st_size
        if least * number_bytes > held and held > 1024:  # shorter files have messages of their own
            self.fail(
                f"describes a model of at least {least * number_bytes} bytes, but {parameters} has "
                f"{held}: one of the two is damaged, or they do not belong together"
            )


class Pretrained:
    """Mixed into models that can be saved as a folder and loaded from it."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        info: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes config.json, model.safetensors and a model card; see ``pretrained.save``.

        Args:
            folder: To be made, or one of this form to be replaced.
            info: Normalisation, environment and so on, as :func:`dmamba.nn.load` returns it.
            evaluation: What :func:`dmamba.evaluate` returned, for the card.

        Returns:
            The folder.

        Raises:
            Error: The folder holds other files, or cannot be written.

        Example:
            >>> model, info = dmamba.nn.load("RUN/checkpoints/step-00007000")
            >>> model.save_pretrained("hopper-policy", info)
        """
        return save(self, folder, info, evaluation)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> Any:
        """The model of a folder that ``save_pretrained`` or ``dmamba export`` wrote.

        A checkpoint of a run is taken, too. :func:`dmamba.nn.load` also returns what it takes to
        act with it: normalisation, scale of returns, environment.

        Args:
            folder: A local folder; one of the Hugging Face hub has to be downloaded before.
            device: Where the model is put.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: No such folder, files that are damaged or of something else, or a
                model of another class.

        Example:
            >>> model = dmamba.nn.DMamba.from_pretrained("hopper-policy")
        """
        from dmamba.nn import load

        check_folder(folder)
        model, _ = load(folder, device)
        if not isinstance(model, cls):
            kind = type(model).__name__
            raise CheckpointError(
                f"{os.fspath(folder)}: the model is of {kind}; call "
                f"dmamba.nn.{kind}.from_pretrained"
            )
        return model
