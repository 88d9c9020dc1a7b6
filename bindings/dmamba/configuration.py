"""Configurations by name, file or dict; in what two of them differ."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmamba import _C

CONFIG_FOLDER = Path(__file__).parent / "configs" / "experiment"

# What may change when a run is continued: nothing that has shaped the steps already done.
# The device is the machine's matter: the run goes on elsewhere, to the same bits only on the same
# device.
UNSHAPING = (
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.skip_nan_batches",
    "training.device",
    "training.graph",
    "training.data",
    "dataset.cache",
)


def load_config(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str] | None = None,
) -> _C.Config:
    """A configuration from its name, file, dict, or object, with overrides applied.

    Args:
        config: A recipe that comes with the package (``hopper-sample``), the path of a YAML file,
            a dict of sections, or a Config, which is copied.
        overrides: ``key=value`` texts, as on the command line.

    Raises:
        ConfigError: Unknown name, key, type or value.
    """
    if isinstance(config, _C.Config):
        loaded = config.copy()
    elif isinstance(config, dict):
        # JSON is YAML, so a dict goes through the same strict reader as a file.
        loaded = _C.Config.parse(json.dumps(config, allow_nan=False), "<dict>")
    else:
        path = _config_path(os.fspath(config))
        loaded = _C.Config.load(str(path))
        if loaded.name == "run":  # the default; a run in runs/run-seed0 says nothing
            loaded.name = path.stem
    loaded.override(list(overrides or ()))
    return loaded


def _config_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.name == name and not path.suffix:
        packaged = CONFIG_FOLDER / f"{name}.yaml"
        if packaged.is_file():
            return packaged
        known = ", ".join(recipes())
        raise _C.ConfigError(
            f"no configuration named {name!r}; there are {known}, or give a file"
            + did_you_mean(name, recipes())
        )
    raise _C.ConfigError(f"{name}: no such configuration file")


def recipes() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if path.stem[0] != "_")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'X'?`` for the known word that is nearest; empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested dict, such as a configuration's, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changes(saved: _C.Config, wanted: _C.Config, allowed: tuple[str, ...]) -> str:
    """What differs, as text; keys that begin with one of ``allowed`` do not count."""
    before, now = flatten(saved.to_dict()), flatten(wanted.to_dict())
    return "; ".join(
        f"{key} was {before[key]!r}, now {now[key]!r}"
        for key in now
        if now[key] != before[key] and not key.startswith(allowed)
    )
