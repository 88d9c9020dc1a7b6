"""What a training begins with: the sets, the models and the trainer, before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmamba import _C, data, evaluation, nn
from dmamba.configuration import UNSHAPING, changes
from dmamba.data import episodes, held_out, pretraining, replays
from dmamba.data.pretraining import Part
from dmamba.evaluation import suites
from dmamba.nn import external
from dmamba.nn.external import ExternalModel, Factory, Model
from dmamba.training import transfer
from dmamba.training.beside import explain
from dmamba.training.choosing import RULES, Choice

RESUMABLE = (*UNSHAPING, "evaluation.")


def load_stores(config: _C.Config, *, progress: bool) -> list[_C.TrajectoryStore | _C.FrameStore]:
    """The sets that a configuration names: one, or several."""
    if config.pretraining.sets:
        return [*pretraining.load(config, progress=progress)]
    return [data.load_configured(config.dataset, progress=progress)]


def given_store(
    config: _C.Config, dataset: _C.TrajectoryStore | _C.FrameStore
) -> list[_C.TrajectoryStore | _C.FrameStore]:
    """A store that was given in place of a file; its name goes into the configuration."""
    if config.pretraining.sets:
        raise _C.ConfigError("pretraining.sets names files; it and dataset= exclude each other")
    config.dataset.path = episodes.config_path(dataset)
    return [data.reshape(dataset, config.dataset)]


def resolve(
    config: _C.Config, stores: list[_C.TrajectoryStore | _C.FrameStore]
) -> tuple[_C.Config, list[Part]]:
    """The configuration with what follows from the data, and its parts."""
    if config.pretraining.sets:
        return pretraining.resolve(config, _vectors(stores))
    resolved = data.resolve(config, stores[0])
    return resolved, [Part("", resolved, stores[0])]


def _vectors(stores: list[_C.TrajectoryStore | _C.FrameStore]) -> list[_C.TrajectoryStore]:
    """Of several sets all are of this kind: pretraining.load() refuses games."""
    return [store for store in stores if isinstance(store, _C.TrajectoryStore)]


def make_model(
    config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore
) -> nn.DMamba | nn.AtariDMamba:
    """A model of a dataset's sizes, on the CPU, with the parameters that ``config.seed`` draws.

    Raises:
        ConfigError: An unknown mixer, or sizes that do not fit each other.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(config.seed)
        if isinstance(store, _C.FrameStore):
            actions = replays.num_actions(store, config.dataset.environment)
            return nn.AtariDMamba(actions, config=config.model)
        return nn.DMamba(store.state_dim, store.act_dim, config=config.model)


def _make_models(config: _C.Config, parts: list[Part]) -> nn.MultiDMamba:
    """The same for several sets."""
    stores = _vectors([part.store for part in parts])
    sizes = {
        part.name: (store.state_dim, store.act_dim)
        for part, store in zip(parts, stores, strict=True)
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return nn.MultiDMamba(sizes, config.model)


def make_trainer(
    config: _C.Config,
    parts: list[Part],
    resumed: Path | None,
    ranks: _C.Ranks | None,
    given: torch.nn.Module | Factory | None = None,
) -> tuple[list[Model], _C.Trainer, dict[str, Any] | None]:
    """Each set's model as it begins, their trainer at step 0, and what another run has given.

    Args:
        config: Resolved.
        parts: Its sets.
        resumed: The checkpoint that the run continues from, if it does: it has no need of what it
            began from, which may be gone.
        ranks: Of one set alone: the processes that train together.
        given: A user's own model, likewise.
    """
    if given is not None and config.pretraining.sets:
        raise _C.ConfigError(
            "pretraining.sets: several sets share the trunk of the built-in model; leave model= out"
        )
    begins = bool(config.transfer.init_from) and resumed is None
    if config.pretraining.sets:
        multi = _make_models(config, parts)
        began = transfer.begin(config, multi) if begins else None
        stores = _vectors([part.store for part in parts])
        return list(multi.models.values()), _C.Trainer(config, stores, multi.cpp_module), began
    store = parts[0].store
    if config.training.context == "schedule" and isinstance(store, _C.TrajectoryStore):
        store = held_out.kept(store, config)
    model: Model
    if given is None:
        model = make_model(config, store)
    else:
        model = external.make(given, config, store)
    if isinstance(model, ExternalModel) and ranks is not None:
        model.check_ranks()
    began = transfer.begin(config, model) if begins else None
    statistics = transfer.statistics(config, store, resumed)
    if isinstance(store, _C.FrameStore):
        return [model], _C.Trainer(config, store, model.cpp_module, ranks), began
    return [model], _C.Trainer(config, store, model.cpp_module, ranks, statistics), began


def check_choice(config: _C.Config, evaluate: bool | str) -> None:
    """Raises ConfigError where a bandit over context lengths would not be told anything."""
    if config.training.context != "bandit":
        return
    if not evaluate:
        raise _C.ConfigError(
            "training.context: bandit chooses by evaluations; leave evaluate (--no-evaluate) out, "
            "or choose schedule"
        )
    if config.evaluation.policy != "windowed":
        raise _C.ConfigError(
            "training.context: bandit chooses the windowed policy's K, but evaluation.policy is "
            f"{config.evaluation.policy}"
        )


def make_choice(
    config: _C.Config,
    store: _C.TrajectoryStore | _C.FrameStore,
    model: Model,
    trainer: _C.Trainer,
) -> Choice | None:
    """What decides on the context length while the run trains, if anything does.

    Args:
        config: Resolved.
        store: All episodes of the set.
        model: The trainer's.
        trainer: At its first step, or at that of the checkpoint that it has loaded.
    """
    if config.training.context not in RULES:
        return None
    mean, std = trainer.state_mean, trainer.state_std
    if config.training.context == "schedule":
        assert isinstance(store, _C.TrajectoryStore) and not isinstance(model, nn.AtariDMamba)
        rest = held_out.rest(store, config)
        module = model.module if isinstance(model, ExternalModel) else model
        choice = Choice(config, held_out.HeldOutLoss(rest, module, config, mean, std))
    else:
        choice = Choice(config, partial(_mean_return, config, model, trainer))
    choice.connect(trainer)
    return choice


def _mean_return(
    config: _C.Config,
    model: Model,
    trainer: _C.Trainer,
    length: int,
    check: Callable[[], None],
) -> float:
    """The mean return over the targets, in other episodes than those that are reported."""
    try:
        result = evaluation.evaluate_model(
            model,
            evaluation.trainer_info(trainer, config),
            **evaluation.settings(config),
            context_length=length,
            first_episode=config.evaluation.episodes,
            progress=False,
            check=check,
        )
    except Exception as error:  # whatever environments and models of users raise
        raise _C.Error(f"K {length}: {explain(error)}") from error
    returns = [row["return_mean"] for row in result["targets"]]
    return float(sum(returns) / len(returns))


def check_external_evaluation(models: list[Model], config: _C.Config, evaluate: bool | str) -> None:
    """Raises ConfigError where a user's own model could not be evaluated as it is asked for."""
    if not evaluate or not isinstance(models[0], ExternalModel):
        return
    if evaluate == "beside":
        raise _C.ConfigError(
            "evaluate: a model of your own is evaluated between the steps, in the process that has "
            "its code, not beside"
        )
    if config.evaluation.policy != "windowed":
        raise _C.ConfigError(
            f"evaluation.policy: {config.evaluation.policy}, but a model of your own acts through "
            "its forward alone; choose windowed"
        )


def check_evaluation(parts: list[Part], evaluate: bool | str) -> None:
    """Finds out before the training, not after it, that an evaluation cannot work.

    Args:
        parts: The sets.
        evaluate: As for :func:`dmamba.train`.
    """
    if evaluate == "beside" and len(parts) > 1:
        raise _C.ConfigError("evaluate: several sets are evaluated between the steps, not beside")
    for part in parts:
        check_environment(part.config, part.store)


def check_environment(config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> None:
    """Finds out before the training, not after it, that the evaluation cannot work."""
    environment = config.dataset.environment
    if not environment:
        raise _C.ConfigError(
            f"{store.name}: neither file nor configuration names an environment; set "
            "dataset.environment=ID, or train without evaluation (evaluate=False, --no-evaluate)"
        )
    told = store.metadata.get("environment", environment)
    if told != environment:
        warnings.warn(
            f"{store.name} names {told} as its environment, but dataset.environment is "
            f"{environment}, in which policies will be evaluated; dataset.environment={told} "
            "takes the dataset's",
            stacklevel=2,
        )
    suites.check_store(environment, store, config.dataset.max_episode_length)
    suites.check_engine(config.evaluation.engine, environment)


def check_one_process(config: _C.Config) -> None:
    """Refuses what several ranks cannot train together."""
    if config.pretraining.sets:
        raise _C.ConfigError("pretraining.sets: several sets are trained in one process")
    if config.training.context in RULES:
        raise _C.ConfigError(
            f"training.context: {config.training.context} is decided in one process; choose fixed "
            "or random with torchrun"
        )


def check_unchanged(saved: _C.Config, wanted: _C.Config, folder: Path) -> None:
    """Refuses to resume a run with settings that would shape it otherwise."""
    # A bandit's choices follow from its evaluations.
    bandit = saved.training.context == "bandit"
    changed = changes(saved, wanted, (*UNSHAPING, "evaluation.every") if bandit else RESUMABLE)
    if changed:
        raise _C.ConfigError(
            f"{folder}: a resumed run keeps its configuration, but {changed}. "
            "Leave that out, or start a new run in another folder"
        )
