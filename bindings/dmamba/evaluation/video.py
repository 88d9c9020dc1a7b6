"""Videos of a trained model at play: one episode, as .mp4 or .gif.

A game's picture is its own, in colour and at full size, the greater of a step's last two frames;
ALE's batch shows only what the model sees, so a second game with the same seed and actions plays
along. MuJoCo draws through OpenGL.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmamba import _C, evaluation
from dmamba.common.files import replacing
from dmamba.envs.failures import Failure
from dmamba.envs.jobs import Job, make_jobs
from dmamba.evaluation import suites
from dmamba.evaluation.rollout import Batch, play
from dmamba.runs import Run

if TYPE_CHECKING:
    from dmamba.nn.external import Factory

GAME_FPS = 15.0  # of 60 frames a second every fourth is a step
_SMALLEST = 400  # rows that a picture is scaled up to, by a whole factor
_GIF_FPS = 50.0  # viewers show faster ones slowly


def record_video(
    run: Run | str | Path,
    path: str | os.PathLike[str],
    target: float | None = None,
    *,
    policy: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    weights: str = "fp32",
    temperature: float | None = None,
    rtg_rewards: str | None = None,
    sticky_actions: float | None = None,
    model: torch.nn.Module | Factory | None = None,
) -> dict[str, Any]:
    """Films one episode of a run's latest checkpoint, or of one checkpoint.

    It is episode 0 of an evaluation with the same seed. What is left out is taken from the run's
    configuration, as :func:`dmamba.evaluate` does, whose arguments these are.

    Args:
        run: A :class:`dmamba.Run`, a run folder, or one checkpoint folder.
        path: The file, .mp4 (needs imageio[ffmpeg]) or .gif; replaced once it is complete.
        target: Raw return to ask for; None: the first of the run's.
        policy: ``windowed`` or ``recurrent``.
        seed: Of the environments.
        device: ``cpu``, ``cuda`` or ``auto``.
        weights: ``fp32`` or ``bf16``.
        temperature: Of games alone, as the next two.
        rtg_rewards: ``raw`` or ``clipped``.
        sticky_actions: Probability that a frame repeats the action before.
        model: Of a run with a model of your own, as for :func:`dmamba.evaluate`.

    Returns:
        A dict with ``path``, ``environment``, ``target``, ``return``, ``length`` (steps) and
        ``frames_per_second``.

    Raises:
        ConfigError: Another kind of file, or what :func:`dmamba.evaluate` raises.
        Error: A package is missing, or OpenGL does not work.

    Example:
        >>> dmamba.record_video("runs/breakout-seed0", "breakout.mp4", target=90)["return"]
    """
    path = Path(path)
    check_path(path)
    loaded, info, config = evaluation.load_model(
        run.folder if isinstance(run, Run) else Path(run), device, model=model
    )
    defaults = config.evaluation
    choices = suites.Choices(
        policy or defaults.policy,
        weights,
        rtg_rewards or defaults.rtg_rewards,
        defaults.temperature if temperature is None else temperature,
        defaults.sticky_actions if sticky_actions is None else sticky_actions,
        config.dataset.max_episode_length,
    )
    targets = defaults.targets if target is None else [target]
    seed = defaults.seed if seed is None else seed
    evaluation.check_request(targets, 1, seed)
    suite = suites.choose(loaded, info, config.dataset.environment, choices)
    job = make_jobs(targets[:1], 1, seed)[0]
    played: dict[str, Any] = {}

    def on_episode(job: Job, total: float, length: int) -> None:
        played.update({"return": total, "length": length})

    with _film(suite) as (batch, picture, fps), _writer(path, fps) as add:
        play(suite.policy(1), _Filmed(batch, lambda: add(picture())), [job], on_episode)
    return {
        "path": path,
        "environment": suite.environment,
        "target": job.target,
        **played,
        "frames_per_second": fps,
    }


def check_path(path: Path) -> None:
    """Raises ConfigError or Error where a video cannot be written, before anything is played."""
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise _C.ConfigError(f"{path}: a video is a .mp4 or a .gif file")
    if not path.parent.is_dir():
        raise _C.ConfigError(f"{path}: there is no folder {path.parent}")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio.v2  # noqa: F401
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise _C.Error(
                f"{path}: a .mp4 file needs imageio and ffmpeg ({error}): "
                "pip install 'imageio[ffmpeg]'; a .gif file needs neither"
            ) from error


class _Filmed:
    """A batch of one slot that has a picture taken of every state."""

    num_envs = 1

    def __init__(self, batch: Batch, take: Callable[[], None]) -> None:
        self._batch = batch
        self._take = take

    @property
    def failures(self) -> Mapping[int, Failure]:
        return self._batch.failures

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        states = self._batch.reset(mask, seeds)
        if not self.failures:
            self._take()
        return states

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        answer = self._batch.step(actions, active)
        if not self.failures:
            self._take()
        return answer


class _SideBySide:
    """A game as the model sees it, and beside it the same game as people do."""

    num_envs = 1

    def __init__(self, game: Any, screen: Any) -> None:
        self._game = game
        self._screen = screen
        self.failures: dict[int, Failure] = {}
        self.picture = np.empty(0)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        self.picture = self._screen.reset(mask, seeds)[0, 0]
        return self._game.reset(mask, seeds)

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.picture = self._screen.step(actions, active)[0][0, 0]
        return self._game.step(actions, active)


@contextlib.contextmanager
def _film(
    suite: suites.VectorSuite | suites.GameSuite,
) -> Iterator[tuple[Batch, Callable[[], np.ndarray], float]]:
    """A batch of one slot, what takes a picture of it, and steps a second."""
    if isinstance(suite, suites.GameSuite):
        with (
            suite.environments(1, 1) as game,
            suite.environments(1, 1, screen=True) as screen,
        ):
            both = _SideBySide(game, screen)
            yield both, lambda: both.picture, GAME_FPS
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("MUJOCO_GL")):
        os.environ["MUJOCO_GL"] = "egl"  # the choice without a window system; needs no GPU
    with suite.environments(1, 1, render_mode="rgb_array") as batch:
        yield batch, lambda: _render(batch), float(batch.frames_per_second)


def _render(batch: Any) -> np.ndarray:
    try:
        return batch.render()
    except Exception as error:  # whatever a GL library raises
        raise _C.Error(
            f"the environment cannot be drawn: {type(error).__name__}: {error}; MUJOCO_GL is "
            f"{os.environ.get('MUJOCO_GL', 'not set')!r}: set it to egl (apt install libegl1), "
            "osmesa (apt install libosmesa6) or, with a display, glfw"
        ) from error


@contextlib.contextmanager
def _writer(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """What adds a picture to a file, which is in its place once all are."""
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_gif
    with replacing(path, path.suffix.lower()) as temporary, write(temporary, fps) as add:
        yield add


@contextlib.contextmanager
def _write_mp4(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    import imageio.v2

    def add(picture: np.ndarray) -> None:
        factor = _factor(len(picture))
        writer.append_data(picture.repeat(factor, axis=0).repeat(factor, axis=1))

    # Blocks of two pixels are what yuv420 needs; imageio's sixteen would stretch the picture.
    opened = imageio.v2.get_writer(path, format="FFMPEG", mode="I", fps=fps, macro_block_size=2)
    with contextlib.closing(opened) as writer:  # as a context it stays open after an exception
        yield add


@contextlib.contextmanager
def _write_gif(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """All pictures stay in memory until the end, of 256 colours and not yet enlarged."""
    from PIL import Image

    stride = math.ceil(fps / _GIF_FPS)
    kept: list[Any] = []
    count = 0

    def add(picture: np.ndarray) -> None:
        nonlocal count
        if count % stride == 0:
            kept.append(Image.fromarray(picture).quantize())
        count += 1

    yield add
    width, height = kept[0].size
    factor = _factor(height)
    larger = (image.resize((factor * width, factor * height)) for image in kept)
    next(larger).save(
        path, save_all=True, append_images=larger, duration=1000.0 * stride / fps, loop=0
    )


def _factor(rows: int) -> int:
    """By what whole factor a picture is enlarged."""
    return max(1, math.ceil(_SMALLEST / rows))
