"""What importing dmamba loads: not the compiler, which a module leaves alone all the same."""

import subprocess
import sys

import torch

import dmamba

# Slow to import, and needed by a part of the users only.
HEAVY = ["torch._dynamo", "matplotlib", "scipy", "tensorboard", "jinja2", "gymnasium", "optuna"]

USE = f"""
import sys
import torch
before = set(sys.modules)
import dmamba
import dmamba.commands
model = dmamba.nn.DMamba(state_dim=2, act_dim=1, d_model=8, n_layer=1, context_length=3)
model(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.arange(3)[None])
print(*sorted((set(sys.modules) - before) & set({HEAVY!r})))
"""


def test_what_is_slow_to_import_waits_until_it_is_used():
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == []


class Around(torch.nn.Module):
    """Torch operators before and after a C++ module."""

    def __init__(self):
        super().__init__()
        self.mamba = dmamba.nn.Mamba(d_model=8)

    def forward(self, x):
        return self.mamba(2 * x) + 1


def test_the_compiler_leaves_a_module_whole():
    model = Around()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    eager = model(x)
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    out = compiled(x)
    assert torch.equal(out, eager) and torch.equal(compiled(x), eager)
    assert graphs == [["mul"], ["add"]]
    (gradient,) = torch.autograd.grad(out.sum(), [model.mamba.in_proj.weight])
    (expected,) = torch.autograd.grad(eager.sum(), [model.mamba.in_proj.weight])
    assert torch.equal(gradient, expected)
