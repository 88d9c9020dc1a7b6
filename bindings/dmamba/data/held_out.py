"""Episodes kept from the training, and the loss of a model on them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dmamba import _C
from dmamba.nn.external import seeded

BATCHES = 16  # of training.batch_size segments each, the same at every measurement


def kept(store: _C.TrajectoryStore, config: _C.Config) -> _C.TrajectoryStore:
    """The episodes to train on; arguments and errors as of :func:`rest`."""
    drawn = set(_draw(store, config))
    return _C.select_episodes(store, [i for i in range(store.num_episodes) if i not in drawn])


def rest(store: _C.TrajectoryStore, config: _C.Config) -> _C.TrajectoryStore:
    """The episodes that are held out.

    Args:
        store: All of them.
        config: Its ``dataset.validation_fraction`` and ``selection_seed`` draw them, at least one,
            and leave at least one.

    Raises:
        DataError: There are fewer than two episodes, or the longest of ``training.contexts``
            exceeds all that are held out.
    """
    return _C.select_episodes(store, _draw(store, config))


def _draw(store: _C.TrajectoryStore, config: _C.Config) -> list[int]:
    """Indices of the episodes that are held out, rising."""
    count, chosen = store.num_episodes, config.dataset
    if count < 2:
        raise _C.DataError(
            f"{store.name}: one episode, but training.context=schedule holds some out; choose "
            "another way to set K"
        )
    drawn = _C.draw_episodes(store, chosen.validation_fraction, chosen.selection_seed)
    if len(drawn) == count:  # a large fraction of few episodes
        drawn = drawn[1:]
    longest, wanted = int(store.episode_lengths[drawn].max()), config.training.contexts[-1]
    if wanted > longest:
        raise _C.DataError(
            f"{store.name}: training.contexts goes to {wanted}, but the longest of the "
            f"{len(drawn)} held-out episodes has {longest} steps; choose another "
            "dataset.validation_fraction or dataset.selection_seed"
        )
    return drawn


class HeldOutLoss:
    """The mean squared error of a model's actions on held-out episodes, in evaluation mode.

    Args:
        store: Of the held-out episodes.
        model: Wherever it is; its mode stays what it is.
        config: Resolved.
        state_mean, state_std: (state_dim,), of the training's episodes.
    """

    def __init__(
        self,
        store: _C.TrajectoryStore,
        model: torch.nn.Module,
        config: _C.Config,
        state_mean: list[float],
        state_std: list[float],
    ) -> None:
        self._model = model
        self._seed = config.seed
        self._samplers = {
            length: _C.SegmentSampler(
                store=store,
                batch_size=config.training.batch_size,
                context_length=length,
                seed=config.seed,
                paper_padding=config.model.padding == "paper",
                rtg_scale=config.dataset.rtg_scale,
                state_mean=state_mean,
                state_std=state_std,
                max_timestep=config.model.max_timestep,
            )
            for length in config.training.contexts
        }

    @torch.no_grad()
    def __call__(self, length: int, check: Callable[[], None] = lambda: None) -> float:
        """The loss with segments of so many steps, over the steps that are no padding.

        ``check`` is called before every batch; it may raise to stop.
        """
        device = next(self._model.parameters()).device
        training = self._model.training
        self._model.eval()
        try:
            with seeded(self._seed, device):  # a model of the user's own may draw numbers
                return self._mean(length, device, check)
        finally:
            self._model.train(training)

    def _mean(self, length: int, device: torch.device, check: Callable[[], None]) -> float:
        total, steps = 0.0, 0
        for step in range(BATCHES):
            check()
            batch = [
                torch.from_numpy(part).to(device) for part in self._samplers[length].sample(step)
            ]
            actions, mask = batch[1], batch[4]
            errors = (self._model(*batch) - actions)[mask].double()
            total += float(errors.square().mean(-1).sum())
            steps += int(mask.sum())
        return total / steps
