"""Types of the C++ extension; the sources are bindings/*.cpp."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

class Error(RuntimeError): ...
class DataError(Error): ...
class ConfigError(Error): ...
class CheckpointError(Error): ...

def set_log_level(level: str) -> None: ...
def log_level() -> str: ...
def replace_folder(fresh: str, path: str) -> None: ...
def cpu_capabilities() -> list[str]: ...
def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> None: ...
def set_cuda_scan_plan(chunk_length: int = 0) -> None: ...
def set_token_chain(on: bool = True) -> None: ...
def token_chain_enabled() -> bool: ...

class DatasetConfig:
    path: str
    environment: str
    rtg_scale: float
    max_episode_length: int
    fraction: float
    buffers: int
    trajectories_per_buffer: int
    transitions: int
    selection_seed: int
    cache: str
    top_fraction: float
    rewards: str
    validation_fraction: float
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> DatasetConfig: ...

class ModelConfig:
    d_model: int
    n_layer: int
    context_length: int
    token_mixer: list[str]
    channel_mixing: str
    padding: str
    initialization: str
    dropout: float
    embedding_dropout: float
    d_state: int
    d_conv: int
    expand: int
    dt_rank: int
    max_timestep: int
    n_head: int
    conv_window: int
    channel_group: int
    rtg: str
    past_actions: str
    encoder: str
    position: str
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> ModelConfig: ...

class TrainingConfig:
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    decay: str
    beta1: float
    beta2: float
    epsilon: float
    warmup_steps: int
    schedule: str
    warmup_tokens: int
    cosine_tokens: int
    final_learning_rate: float
    gradient_clip: float
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    skip_nan_batches: int
    threads: int
    device: str
    precision: str
    graph: str
    data: str
    context: str
    contexts: list[int]
    context_rule: str
    context_every: int
    context_tolerance: float
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> TrainingConfig: ...

class TransferConfig:
    init_from: str
    set: str
    fresh: list[str]
    freeze: list[str]
    learning_rates: list[str]
    statistics: str
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> TransferConfig: ...

class PretrainingConfig:
    sets: list[str]
    temperature: float
    environments: list[str]
    rtg_scales: list[float]
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> PretrainingConfig: ...

class EvaluationConfig:
    targets: list[float]
    episodes: int
    every: int
    policy: str
    rtg_rewards: str
    confidence: float
    seed: int
    engine: str
    timeout: float
    max_failed: float
    temperature: float
    sticky_actions: float
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> EvaluationConfig: ...

class Config:
    name: str
    seed: int
    dataset: DatasetConfig
    model: ModelConfig
    training: TrainingConfig
    transfer: TransferConfig
    pretraining: PretrainingConfig
    evaluation: EvaluationConfig
    @staticmethod
    def load(path: str) -> Config: ...
    @staticmethod
    def parse(text: str, source: str = "<text>") -> Config: ...
    def override(self, overrides: Sequence[str]) -> None: ...
    def to_yaml(self, with_docs: bool = False) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...
    def copy(self) -> Config: ...
    def validate(self) -> None: ...

class EpisodeStore:
    @property
    def name(self) -> str: ...
    @property
    def num_transitions(self) -> int: ...
    @property
    def num_episodes(self) -> int: ...
    @property
    def dropped_transitions(self) -> int: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def episode_lengths(self) -> NDArray[np.int64]: ...
    @property
    def episode_returns(self) -> NDArray[np.float64]: ...
    def summary(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

class TrajectoryStore(EpisodeStore):
    @property
    def state_dim(self) -> int: ...
    @property
    def act_dim(self) -> int: ...
    def episode(self, index: int) -> dict[str, Any]: ...
    def state_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

def open_dataset(
    path: str,
    format: str = "auto",
    storage: str = "auto",
    scratch: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> TrajectoryStore: ...
def open_minari(
    path: str,
    metadata: dict[str, str],
    storage: str = "auto",
    scratch: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> TrajectoryStore: ...
def create_store(
    observations: NDArray[np.float32],
    actions: NDArray[np.float32],
    rewards: NDArray[np.float32],
    terminals: NDArray[np.uint8],
    timeouts: NDArray[np.uint8],
    name: str,
    metadata: dict[str, str],
) -> TrajectoryStore: ...
def draw_episodes(store: EpisodeStore, fraction: float, seed: int) -> list[int]: ...
def select_episodes(store: TrajectoryStore, episodes: Sequence[int]) -> TrajectoryStore: ...
def delay_rewards(store: TrajectoryStore) -> TrajectoryStore: ...

class SegmentSampler:
    def __init__(
        self,
        store: TrajectoryStore,
        batch_size: int,
        context_length: int,
        seed: int,
        paper_padding: bool,
        rtg_scale: float,
        state_mean: Sequence[float],
        state_std: Sequence[float],
        max_timestep: int,
    ) -> None: ...
    def sample(
        self, step: int
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.int64],
        NDArray[np.bool_],
    ]: ...
    def segment(self, step: int, index: int) -> tuple[int, int, int]: ...

class FrameStore(EpisodeStore):
    @property
    def num_actions(self) -> int: ...
    @property
    def frames(self) -> NDArray[np.uint8]: ...
    @property
    def actions(self) -> NDArray[np.int32]: ...
    @property
    def rewards(self) -> NDArray[np.float32]: ...
    @property
    def returns_to_go(self) -> NDArray[np.float32]: ...
    @property
    def episode_ends(self) -> NDArray[np.int64]: ...
    def episode(self, index: int) -> dict[str, Any]: ...

def open_replay(
    path: str,
    buffers: int = 0,
    trajectories_per_buffer: int = 0,
    transitions: int = 0,
    seed: int = 0,
    game: str = "",
    cache: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> FrameStore: ...

class ReplayOutline(EpisodeStore):
    @property
    def num_actions(self) -> int: ...
    @property
    def actions(self) -> NDArray[np.int32]: ...

def outline_replay(
    path: str,
    buffers: int = 0,
    trajectories_per_buffer: int = 0,
    transitions: int = 0,
    seed: int = 0,
    game: str = "",
    cache: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> ReplayOutline | FrameStore: ...

class FrameSampler:
    def __init__(
        self,
        store: FrameStore,
        batch_size: int,
        context_length: int,
        seed: int = 0,
        rtg_scale: float = 1.0,
        max_timestep: int = 10000,
    ) -> None: ...
    def sample(
        self, step: int
    ) -> tuple[
        NDArray[np.uint8],
        NDArray[np.int64],
        NDArray[np.float32],
        NDArray[np.int64],
        NDArray[np.bool_],
    ]: ...
    def segment(self, step: int, index: int) -> tuple[int, int, int]: ...

class Mamba(torch.nn.Module):
    """The C++ module as ``torch.nn.cpp.ModuleWrapper`` shows it; see ``dmamba.nn.Mamba``."""

    cpp_module: Any
    def __init__(
        self,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        dt_rank: int,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None: ...

class DMamba(torch.nn.Module):
    """The C++ module as ``torch.nn.cpp.ModuleWrapper`` shows it; see ``dmamba.nn.DMamba``."""

    cpp_module: Any
    state_dim: int
    act_dim: int
    config: ModelConfig
    def __init__(self, state_dim: int, act_dim: int, config: Any) -> None: ...

class MultiDMamba(torch.nn.Module):
    """The C++ module as ``ModuleWrapper`` shows it; see ``dmamba.nn.MultiDMamba``."""

    cpp_module: Any
    names: list[str]
    def __init__(self, models: Sequence[Any], names: Sequence[str]) -> None: ...

class AtariDMamba(torch.nn.Module):
    """The C++ module as ``ModuleWrapper`` shows it; see ``dmamba.nn.AtariDMamba``."""

    cpp_module: Any
    num_actions: int
    config: ModelConfig
    def __init__(self, num_actions: int, config: ModelConfig) -> None: ...

class RecurrentState: ...

class AtariPolicy:
    def __init__(
        self,
        model: Any,
        kind: str,
        num_envs: int,
        rtg_scale: float = 1.0,
        temperature: float = 1.0,
        context_length: int = 0,
        forget_after: int = 0,
    ) -> None: ...
    def reset(self, which: torch.Tensor, targets: torch.Tensor, seeds: torch.Tensor) -> None: ...
    def act(self, frames: torch.Tensor) -> torch.Tensor: ...
    @property
    def logits(self) -> torch.Tensor: ...
    def observe(self, rewards: torch.Tensor) -> None: ...

class Policy:
    def __init__(
        self,
        model: Any,
        kind: str,
        num_envs: int,
        rtg_scale: float,
        state_mean: Sequence[float],
        state_std: Sequence[float],
        weights: str = "fp32",
        context_length: int = 0,
        forget_after: int = 0,
    ) -> None: ...
    def reset(self, which: torch.Tensor, targets: torch.Tensor) -> None: ...
    def act(self, observations: torch.Tensor) -> torch.Tensor: ...
    def observe(self, rewards: torch.Tensor) -> None: ...

class ExternalModel:
    def __init__(
        self,
        name: str,
        state_dim: int,
        act_dim: int,
        config: ModelConfig,
        parts: Sequence[tuple[str, torch.Tensor | None, Any]],
        embeddings: Sequence[str],
        module: torch.nn.Module,
        forward: Callable[..., torch.Tensor],
        buffers: Callable[[], list[tuple[str, torch.Tensor]]],
    ) -> None: ...
    @property
    def state_dim(self) -> int: ...
    @property
    def act_dim(self) -> int: ...

class NotFiniteError(Error): ...
class LostRankError(Error): ...

class Ranks:
    def __init__(self, group: ProcessGroup, bucket_bytes: int = ...) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def bucket_bytes(self) -> int: ...

class Trainer:
    @overload
    def __init__(
        self,
        config: Config,
        store: TrajectoryStore | FrameStore,
        model: Any,
        ranks: Ranks | None = None,
        statistics: tuple[list[float], list[float]] | None = None,
    ) -> None: ...
    @overload
    def __init__(self, config: Config, stores: Sequence[TrajectoryStore], model: Any) -> None: ...
    @property
    def step(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def uses_graph(self) -> bool: ...
    def choose_contexts(self, lengths: Sequence[int], best: int, note: str) -> None: ...
    @property
    def context_note(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def data_on_device(self) -> bool: ...
    @property
    def state_mean(self) -> list[float]: ...
    @property
    def state_std(self) -> list[float]: ...
    @property
    def sets(self) -> list[dict[str, Any]]: ...
    def run(self, seconds: float = 0.2, max_steps: int = -1) -> list[dict[str, Any]]: ...
    def save(self, folder: str) -> None: ...
    def load(self, folder: str) -> None: ...
    def synchronize(self) -> None: ...
    def release(self) -> None: ...

def resolve_device(choice: str, key: str = "device") -> str: ...
def read_checkpoint(folder: str) -> dict[str, Any]: ...
def init_parameters(origin: str, model: Any, config: Config) -> tuple[list[str], list[str]]: ...
def load_parameters(folder: str, model: Any) -> None: ...
