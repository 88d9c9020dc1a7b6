"""torch.compile, torch.export, functional_call, autocast and DDP: what works, and what does not."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import dmamba
from dmamba.nn import DMamba, GraphDMamba, GraphMamba, GraphStep, Mamba, MambaBlock

OPTIONS = {"d_model": 16, "n_layer": 2, "context_length": 6, "max_timestep": 50}
MODELS = [
    {},
    {"channel_mixing": "none", "padding": "paper", "d_state": 3, "d_conv": 2, "expand": 1},
    {"rtg": "none"},
    {"past_actions": "none", "token_mixer": "convolution"},
    {"token_mixer": ["attention", "mamba"], "n_head": 2},
    {"token_mixer": "s4d", "d_state": 4, "channel_mixing": "ssm", "channel_group": 4},
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def make_model(**options):
    torch.manual_seed(0)
    return DMamba(5, 2, **OPTIONS | options).eval()


def make_batch(batch=3, K=6):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, K, dtype=torch.bool)
    mask[0, : K // 2] = False
    return (
        torch.randn(batch, K, 5, generator=generator),
        torch.randn(batch, K, 2, generator=generator),
        torch.randn(batch, K, 1, generator=generator),
        torch.arange(K).repeat(batch, 1),
        mask,
    )


@pytest.mark.parametrize("options", MODELS)
def test_the_graph_is_the_model(options):
    model, batch = make_model(**options), make_batch()
    graph = GraphDMamba(model)
    assert dict(graph.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(graph.get_parameter(n) is p for n, p in model.named_parameters())
    for arguments in (batch, batch[:-1]):
        y, expected = graph(*arguments), model(*arguments)
        torch.testing.assert_close(y, expected)
    grade = torch.randn_like(y)
    gradients = torch.autograd.grad(y, graph.parameters(), grade)
    theirs = torch.autograd.grad(expected, [model.get_parameter(n) for n, _ in
                                            graph.named_parameters()], grade)  # fmt: skip
    for a, b in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", MODELS)
def test_the_graph_compiles_whole(options):
    graph, batch = GraphDMamba(make_model(**options)), make_batch()
    expected = graph(*batch)
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*batch), expected)
    wanted = torch.autograd.grad(expected.sum(), graph.parameters())
    got = torch.autograd.grad(compiled(*batch).sum(), graph.parameters())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_model_in_cpp_stays_whole_beside_compiled_code():
    """Around it torch.compile breaks the graph: two of them, before and after."""
    model, batch = make_model(), make_batch()
    counter = CompileCounter()

    def twice(*arguments):
        states = arguments[0] * 1.5
        return model(states, *arguments[1:]) * 2

    compiled = torch.compile(twice, backend=counter)
    assert torch.equal(compiled(*batch), twice(*batch)) and counter.frame_count == 2
    compiled(*batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable"):
        torch.compile(twice, fullgraph=True, backend="eager")(*batch)


def test_the_window_is_exported(tmp_path):
    model = make_model()
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("K", max=50)}
    exported = torch.export.export(
        GraphDMamba(model), make_batch(3, 6), dynamic_shapes=(dynamic,) * 5, strict=False
    )
    torch.export.save(exported, tmp_path / "window.pt2")
    loaded = torch.export.load(tmp_path / "window.pt2").module()
    for shape in ((3, 6), (2, 1), (7, 11)):
        batch = make_batch(*shape)
        torch.testing.assert_close(loaded(*batch), model(*batch))


def walk(step, state, n=4, length=5):
    """Actions of episodes that begin anew at different times."""
    generator = torch.Generator().manual_seed(2)
    actions, made = torch.zeros(n, 2), []
    for t in range(2 * length):
        start = torch.tensor([(t + i) % length == 0 or t == 0 for i in range(n)])
        age = torch.tensor([t if t < length - i else (t + i) % length for i in range(n)])
        observed = torch.randn(n, 5, generator=generator)
        rtg = torch.randn(n, 1, generator=generator)
        actions, state = step(actions, rtg, observed, age, start, state)
        made.append(actions)
    return torch.stack(made)


@pytest.mark.parametrize("options", [{}, {"rtg": "none"}, {"past_actions": "none"}])
def test_the_recurrent_step_is_exported_and_compiled(options, tmp_path):
    model = make_model(**options)
    step = GraphStep(GraphDMamba(model))

    def by_model(actions, rtg, states, age, start, state):
        return model.step(actions, rtg, states, age, start, state), state

    def by(function):
        def run(actions, rtg, states, age, start, state):
            actions, conv, ssm = function(actions, rtg, states, age, start, *state)
            return actions, (conv, ssm)

        return run

    expected = walk(by_model, model.initial_state(4))
    with torch.no_grad():
        example = (torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4, 5),
                   torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool),
                   *step.initial_state(4))  # fmt: skip
        torch.testing.assert_close(walk(by(step), step.initial_state(4)), expected)
        exported = torch.export.export(step, example, strict=False)
        torch.export.save(exported, tmp_path / "step.pt2")
        loaded = torch.export.load(tmp_path / "step.pt2").module()
        torch.testing.assert_close(walk(by(loaded), step.initial_state(4)), expected)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(walk(by(compiled), step.initial_state(4)), expected)


def test_a_model_in_cpp_is_not_exported():
    with pytest.raises(NotImplementedError, match=r"torch\.export.*dmamba\.nn\.GraphDMamba"):
        torch.export.export(make_model(), make_batch())


def test_other_parameters_can_take_the_graphs_places():
    model, batch = make_model(), make_batch()
    other = make_model()
    other.load_state_dict({n: t + 0.01 for n, t in model.state_dict().items()})
    y = torch.func.functional_call(GraphDMamba(model), other.state_dict(), batch)
    torch.testing.assert_close(y, other(*batch))


def test_hooks_fire_inside_the_graph():
    graph, seen = GraphDMamba(make_model()), []
    graph.transformer.h[1].mamba.dt_proj.register_forward_hook(lambda *_: seen.append("dt_proj"))
    graph.transformer.h[1].register_forward_hook(lambda *_: seen.append("layer"))
    graph(*make_batch())
    assert seen == ["layer"], "dt_proj's bias joins inside the scan: its weight is used, not it"


def test_layers_that_do_not_step():
    attention = GraphDMamba(make_model(token_mixer="attention"))
    with pytest.raises(dmamba.ConfigError, match="attention; it steps mamba layers alone"):
        GraphStep(attention)


def test_layers_alone_compile_whole():
    torch.manual_seed(0)
    block, x = MambaBlock(16, d_state=3).eval(), torch.randn(2, 7, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    layer = GraphMamba(16, bias=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("module", [lambda: Mamba(16), lambda: dmamba.nn.MambaBlock(16).eval()])
def test_layers_under_autocast(module):
    torch.manual_seed(0)
    layer, x = module(), torch.randn(2, 7, 16)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert (y.float() - expected).abs().max() < 3e-2
    assert y.dtype == (torch.bfloat16 if isinstance(layer, Mamba) else torch.float32)
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


DDP = """
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dmamba

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
torch.manual_seed(rank)  # rank 0's parameters are everybody's
model = dmamba.nn.DMamba(5, 2, d_model=16, n_layer=2, context_length=6, max_timestep=50,
                         dropout=0.0, embedding_dropout=0.0)
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
whole = torch.load(f"{folder}/batch.pt", weights_only=True)
half = [tensor[2 * rank : 2 * rank + 2] for tensor in whole]
for _ in range(3):
    optimizer.zero_grad()
    loss = (wrapped(*half[:4]) - half[4]).square().mean()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
# A thread of gloo's may let go of the last step's work late. The work holds a Python object, and
# a thread that asks for the GIL while the interpreter ends aborts the process (torch 2.13).
os._exit(0)
"""


def test_ddp_is_one_process_with_the_whole_batch(tmp_path):
    states, actions, rtg, timesteps, _ = make_batch(4)
    batch = [states, actions, rtg, timesteps, torch.tanh(actions)]
    torch.save(batch, tmp_path / "batch.pt")
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    torch.manual_seed(0)
    model = DMamba(5, 2, **OPTIONS, dropout=0.0, embedding_dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*batch[:4]) - batch[4]).square().mean().backward()
        optimizer.step()
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
