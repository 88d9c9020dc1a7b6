"""Where a run's parameters and statistics begin: from another run's, as ``transfer`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.nn import pretrained
from dmamba.runs import locate_checkpoint


def locate(init_from: str) -> Path:
    """The checkpoint folder or safetensors file that ``transfer.init_from`` means.

    Args:
        init_from: A checkpoint folder, a run folder (its latest checkpoint), a pretrained folder
            (its parameters' file), or a file.

    Raises:
        CheckpointError: There is nothing of the kind.
    """
    path = Path(init_from).expanduser()
    if pretrained.is_folder(path):
        return path / pretrained.PARAMETERS
    return path if path.is_file() else locate_checkpoint(path)[1]


def _describe_origin(origin: Path) -> dict[str, Any] | None:
    """What is known of the parameters beside them; None of a bare file."""
    if not origin.is_file():
        return _C.read_checkpoint(str(origin))
    return pretrained.read(origin.parent) if pretrained.is_folder(origin.parent) else None


def begin(config: _C.Config, model: Any) -> dict[str, Any]:
    """Copies what fits of ``transfer.init_from`` into a new model.

    Args:
        config: Resolved; its ``transfer.init_from`` is not empty.
        model: As the seed made it, for the data of this run.

    Returns:
        A dict with ``from`` (checkpoint or file), ``step`` (steps that it was trained for; None for
        a bare file), ``taken`` and ``fresh`` (names of parameters).

    Raises:
        CheckpointError: No such checkpoint, or one that does not fit: names the parameter and both
            shapes.
        ConfigError: A pattern that matches no parameter.
    """
    origin = locate(config.transfer.init_from)
    taken, fresh = _C.init_parameters(str(origin), model.cpp_module, config)
    saved = _describe_origin(origin)
    step = None if saved is None else saved["step"]
    return {"from": str(origin), "step": step, "taken": taken, "fresh": fresh}


def describe(report: dict[str, Any]) -> str:
    """What :func:`begin` did, in a line."""
    taken, fresh = report["taken"], report["fresh"]
    step = "" if report["step"] is None else f" (step {report['step']})"
    new = f"; new: {', '.join(fresh)}" if fresh else ""
    count = f"{len(taken)} of {len(taken) + len(fresh)} parameters"
    return f"transfer: {count} from {report['from']}{step}{new}"


def statistics(
    config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore, resumed: Path | None
) -> tuple[list[float], list[float]] | None:
    """Mean and deviation that states are standardised with; None: the store's own.

    Args:
        config: Of the run.
        store: What it trains on.
        resumed: The run's own checkpoint that it continues from, which has them too: what the run
            began from may be gone by then.

    Raises:
        ConfigError: Frames, which are not standardised, or a file without statistics.
        CheckpointError: Statistics of states of another size.
    """
    if config.transfer.statistics == "data":
        return None
    if isinstance(store, _C.FrameStore):
        raise _C.ConfigError(
            "transfer.statistics: checkpoint is for states, but this run's are frames, which are "
            "not standardised; leave the key out"
        )
    origin = locate(config.transfer.init_from) if resumed is None else resumed
    saved = _describe_origin(origin)
    if saved is None:
        raise _C.ConfigError(
            f"transfer.statistics: checkpoint, but {origin} is a file of parameters alone; name a "
            "checkpoint folder in transfer.init_from, or use data"
        )
    if saved["sets"]:
        name = config.transfer.set
        if not name:
            raise _C.ConfigError(
                f"transfer.statistics: checkpoint, but {origin} has those of several sets; name "
                "one in transfer.set, or use data"
            )
        saved = next(known for known in saved["sets"] if known["name"] == name)
    if saved["state_dim"] != store.state_dim:
        raise _C.CheckpointError(
            f"{origin}: was trained on states of {saved['state_dim']} components, those of "
            f"{store.name} have {store.state_dim}: transfer.statistics must be data"
        )
    return saved["state_mean"], saved["state_std"]
