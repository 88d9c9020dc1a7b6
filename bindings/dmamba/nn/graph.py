"""Decision Mamba as a graph of single operators, for ``torch.compile`` and ``torch.export``.

:class:`dmamba.nn.DMamba` does its work inside C++, where no tracer of torch sees it. The module
here is the same model written in Python over the registered operators (:mod:`dmamba.ops`) and
torch's own: a window's actions, or one step of the recurrent policy with its states as arguments.
It holds the parameters of the model that it is made from, not copies. Values agree to rounding. The
C++ model trains faster by its fused gradients; this one can be traced, hooked and rewritten.

Equations and names as in ``src/model``; T. Ota, arXiv 2403.19925.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmamba._C import ConfigError, ModelConfig
from dmamba.nn.blocks import MambaBlock
from dmamba.nn.captures import Recorder
from dmamba.nn.mixers import State, token_kinds


def share(twin: nn.Module, model: Any, without: str | None = None) -> None:
    """Gives a module the parameters of a model: the same tensors under the same names.

    Args:
        twin: With modules of the same names.
        model: Whose parameters they are.
        without: The name of a child that the twin does not have.
    """
    for name, parameter in model.named_parameters():
        if name.split(".")[0] == without:
            continue
        module, _, leaf = name.rpartition(".")
        twin.get_submodule(module)._parameters[leaf] = parameter
    twin.train(model.training)


def _layers(config: ModelConfig) -> nn.ModuleList:
    mixers = config.token_mixer
    if len(mixers) == 1:
        mixers = mixers * config.n_layer
    return nn.ModuleList(MambaBlock(config.d_model, mixer, config) for mixer in mixers)


def _run(
    layers: nn.ModuleList, norm: nn.Module, x: Tensor, mask: Tensor | None, seen: Recorder | None
) -> Tensor:
    """Tokens (batch, L, d_model) through all layers and the last norm."""
    if seen is not None:
        seen.add("tokens", x)
    for i, layer in enumerate(layers):
        if seen is not None:
            seen.layer = i
        x = layer(x, mask, None, seen)
    y = norm(x)
    if seen is not None:
        seen.layer = None
        seen.add("final", y)
    return y


class GraphDMamba(nn.Module):
    """The model of states and actions that are vectors; see :class:`dmamba.nn.DMamba`.

    Args:
        model: Whose parameters these are: the same tensors under the same names.

    Example:
        >>> graph = GraphDMamba(model.eval())
        >>> exported = torch.export.export(graph, (states, actions, returns_to_go, timesteps, mask))
    """

    def __init__(self, model: Any):
        super().__init__()
        config, d = model.config, model.config.d_model
        self.masks = config.padding == "masked"
        self.kinds = token_kinds(config, "return", "state", "action")
        sizes = {"return": 1, "state": model.state_dim, "action": model.act_dim}
        with torch.device("meta"):  # for values that nobody sees
            self.transformer = nn.Module()
            self.transformer.h = _layers(config)
            self.transformer.ln_f = nn.LayerNorm(d)
            self.embed_timestep = nn.Embedding(config.max_timestep, d)
            for kind in self.kinds:
                self.add_module(f"embed_{kind}", nn.Linear(sizes[kind], d))
            self.embed_ln = nn.LayerNorm(d)
            self.embedding_dropout = nn.Dropout(config.embedding_dropout)
            self.predict_action = nn.Sequential(nn.Linear(d, model.act_dim), nn.Tanh())
        share(self, model)

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """Actions (batch, K, act_dim); arguments as those of :class:`dmamba.nn.DMamba`."""
        time = self.embed_timestep(timesteps)
        values = {"return": returns_to_go, "state": states, "action": actions}
        tokens = [self.embed(kind, values[kind]) + time for kind in self.kinds]
        x = self.embedding_dropout(self.embed_ln(torch.stack(tokens, 2).flatten(1, 2)))
        count = len(self.kinds)
        token_mask = (
            mask.repeat_interleave(count, dim=1) if mask is not None and self.masks else None
        )
        y = _run(self.transformer.h, self.transformer.ln_f, x, token_mask, seen)
        return self.predict_action(y.unflatten(1, (-1, count))[:, :, self.kinds.index("state")])

    def embed(self, kind: str, value: Tensor) -> Tensor:
        """(..., d_model) of "return", "state" or "action", without its time."""
        return self.get_submodule(f"embed_{kind}")(value)


class GraphStep(nn.Module):
    """One step of the recurrent policy, its states as arguments and results.

    Args:
        graph: Of mamba layers alone.

    Raises:
        ConfigError: A layer of another mixer.

    Example:
        >>> step = GraphStep(GraphDMamba(model.eval()))
        >>> conv, ssm = step.initial_state(batch=1)
        >>> action, conv, ssm = step(last_action, rtg, state, timestep, first, conv, ssm)
    """

    def __init__(self, graph: GraphDMamba):
        super().__init__()
        others = sorted({layer.token_mixer for layer in graph.transformer.h} - {"mamba"})
        if others:
            raise ConfigError(f"GraphStep: a layer is {others[0]}; it steps mamba layers alone")
        self.policy = graph  # fx has a graph of its own

    def initial_state(self, batch: int) -> State:
        """Before the first step: (n_layer, batch, d_inner, d_conv - 1), (..., d_state), zeros."""
        states = [layer.initial_state(batch) for layer in self.policy.transformer.h]
        return torch.stack([s[0] for s in states]), torch.stack([s[1] for s in states])

    def forward(
        self,
        previous_actions: Tensor,
        returns_to_go: Tensor,
        states: Tensor,
        timesteps: Tensor,
        first: Tensor,
        conv: Tensor,
        ssm: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Acts once for each episode.

        Args:
            previous_actions: (batch, act_dim), what was done at the timestep before.
            returns_to_go: Scaled, (batch, 1).
            states: Standardised, (batch, state_dim).
            timesteps: (batch,) int64.
            first: (batch,) bool, where an episode starts here: it has no previous action, and its
                states begin anew.
            conv: The layers' last inputs of the convolution, as :meth:`initial_state` has them.
            ssm: Their h.

        Returns:
            Actions (batch, act_dim), and both states after the step.
        """
        graph = self.policy
        before = (timesteps - 1).clamp_min(0)
        order = sorted(graph.kinds, key=["action", "return", "state"].index)
        values = {"action": previous_actions, "return": returns_to_go, "state": states}
        tokens, real, starts = [], [], []
        for i, kind in enumerate(order):
            time = graph.embed_timestep(before if kind == "action" else timesteps)
            tokens.append(graph.embed(kind, values[kind]) + time)
            real.append(~first if kind == "action" else torch.ones_like(first))
            starts.append(first if i == 0 else torch.zeros_like(first))
        x = graph.embedding_dropout(graph.embed_ln(torch.stack(tokens, 1)))
        mask, segment_starts = torch.stack(real, 1), torch.stack(starts, 1)
        after = []
        for i, layer in enumerate(graph.transformer.h):
            x, state = layer.step(x, (conv[i], ssm[i]), mask, segment_starts)
            after.append(state)
        actions = graph.predict_action(graph.transformer.ln_f(x)[:, -1])
        return actions, torch.stack([s[0] for s in after]), torch.stack([s[1] for s in after])


class GraphAtariDMamba(nn.Module):
    """The model for games, to look into; its encoder of frames stays in C++.

    Args:
        model: A :class:`dmamba.nn.AtariDMamba`, whose parameters these are.
    """

    def __init__(self, model: Any):
        super().__init__()
        config, d = model.config, model.config.d_model
        self.masks = config.padding == "masked"
        self.counts_timesteps = config.position == "timestep"
        self.kinds = token_kinds(config, "return", "state", "action")
        with torch.device("meta"):
            self.pos_emb = nn.Parameter(torch.empty(0))
            self.global_pos_emb = nn.Parameter(torch.empty(0))
            self.drop = nn.Dropout(config.embedding_dropout)
            self.blocks = _layers(config)
            self.ln_f = nn.LayerNorm(d)
            self.head = nn.Linear(d, model.num_actions, bias=False)
            if "return" in self.kinds:
                self.ret_emb = nn.Sequential(nn.Linear(1, d), nn.Tanh())
            if "action" in self.kinds:
                actions = nn.Embedding(model.num_actions, d)
                self.action_embeddings = nn.Sequential(actions, nn.Tanh())
        self.encode = model.encode
        share(self, model, without="state_encoder")

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """Logits (batch, K, num_actions); arguments as those of the model."""
        batch, K = actions.shape
        values = {"state": self.encode(frames.flatten(0, 1)).unflatten(0, (batch, K))}
        if "return" in self.kinds:
            values["return"] = self.ret_emb(returns_to_go)
        if "action" in self.kinds:
            values["action"] = self.action_embeddings(actions)
        count = len(self.kinds)
        tokens = torch.stack([values[kind].to(self.head.weight.dtype) for kind in self.kinds], 2)
        if mask is None:
            places = torch.arange(K, device=actions.device).expand(batch, K)
        else:
            places = (mask.cumsum(1) - 1).clamp_min(0)
        local, times = self.pos_emb[0], self.global_pos_emb[0]
        last = len(times) - 1
        if self.counts_timesteps:
            now = (timesteps.unsqueeze(1) + places).clamp(0, last)
            tokens = tokens + times[now].unsqueeze(2) + local
        else:
            kind = torch.arange(count, device=actions.device)
            own = local[count * places.unsqueeze(2) + kind]
            tokens = tokens + times[timesteps.clamp(0, last)][:, None, None] + own
        x = self.drop(tokens.flatten(1, 2))
        token_mask = (
            mask.repeat_interleave(count, dim=1) if mask is not None and self.masks else None
        )
        y = _run(self.blocks, self.ln_f, x, token_mask, seen)
        return self.head(y.unflatten(1, (K, count))[:, :, self.kinds.index("state")])
