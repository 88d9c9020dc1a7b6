"""Where a number that is not finite may show: in its sequence, its channel or window, its segment.

Examples are those of op_properties.py.
"""

import torch
from op_properties import Draw, run, weights_for

from dmamba import ops


def spread(op, tensors, marks, name, place, value, device, **options):
    """What changes once `tensors[name][place]` is `value`: for each result the changed places."""
    weights = weights_for(op, tensors)
    plain = run(op, tensors, marks, weights, device, **options)
    hurt = {n: t.clone() for n, t in tensors.items()}
    hurt[name][place] = value
    other = run(op, hurt, marks, weights, device, **options)
    return {n: (a != other[n]) & ~(a.isnan() & other[n].isnan()) for n, a in plain.items()}


def contiguous(tensors):
    return {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def check_scan_isolation(example, name, value, seed, device="cpu", *, segments_in_backward=True):
    """A number that is not finite stays in its sequence, its channel, and its segment."""
    tensors, marks, softplus = example
    tensors = contiguous(tensors)
    batch, length, d_inner = tensors["u"].shape
    make = Draw(seed, torch.float32)
    b, t, c = (int(n * float(make.uniform(1))) for n in (batch, length, d_inner))
    n = int(tensors["A"].shape[1] * float(make.uniform(1)))
    of_all = name in ("B", "C")
    place = (b, t, n if of_all else c)
    changed = spread(
        ops.selective_scan, tensors, marks, name, place, value, device, delta_softplus=softplus
    )
    channel = slice(None) if of_all else c
    starts = marks["segment_starts"]
    first, end = 0, length
    if starts is not None:
        begins = [i for i in range(length) if bool(starts[b, i])]
        first = max([i for i in begins if i <= t], default=0)
        end = min([i for i in begins if i > t], default=length)
    masked = marks["mask"] is not None and not bool(marks["mask"][b, t])
    everywhere = {n: torch.zeros_like(m) for n, m in changed.items()}
    after = slice(t, t + 1) if masked or name in ("z", "C") else slice(t, end)
    everywhere["out"][b, after, channel] = True
    if not masked and name not in ("z", "C") and end == length:
        everywhere["last_state"][b, channel] = True
    whole = slice(first, end) if segments_in_backward else slice(None)
    for row in ("du", "ddelta", "dz"):
        if row in changed:
            everywhere[row][b, whole, channel] = True
    for row in ("dB", "dC"):
        everywhere[row][b, whole] = True
    for row in ("dA", "dD", "ddelta_bias"):
        if row in changed:
            everywhere[row][channel] = True
    if "dinitial_state" in changed and (first == 0 or not segments_in_backward):
        everywhere["dinitial_state"][b, channel] = True
    if masked and name in ("u", "delta", "B"):  # it is as if it were not there
        everywhere["last_state"] &= False
        for row in ("dA", "ddelta_bias", "dinitial_state"):
            if row in changed:
                everywhere[row] &= False
        for row in ("du", "ddelta", "dz", "dB", "dC"):
            if row in changed:
                kept = torch.zeros_like(everywhere[row])
                kept[:, t] = True
                everywhere[row] &= kept
    for result, places in changed.items():
        stray = (places.cpu() & ~everywhere[result].cpu()).nonzero().tolist()
        assert not stray, f"{value} in {name}{list(place)} reaches {result}{stray[0]}"


def check_convolution_isolation(example, value, seed, device="cpu"):
    """The same of a convolution: its channel, and the tokens whose window sees it."""
    tensors, marks, silu = example
    tensors = contiguous(tensors)
    batch, length, d_inner = tensors["x"].shape
    width = tensors["weight"].shape[1]
    make = Draw(seed, torch.float32)
    b, t, c = (int(n * float(make.uniform(1))) for n in (batch, length, d_inner))
    changed = spread(ops.causal_conv1d, tensors, marks, "x", (b, t, c), value, device, silu=silu)
    starts = marks["segment_starts"]
    begins = [] if starts is None else [i for i in range(length) if bool(starts[b, i])]
    first = max([i for i in begins if i <= t], default=-width)
    end = min([i for i in begins if i > t], default=length)
    masked = marks["mask"] is not None and not bool(marks["mask"][b, t])
    allowed = {name: torch.zeros_like(m) for name, m in changed.items()}
    if not masked:
        seen = slice(t, min(t + width, end))
        allowed["out"][b, seen, c] = True
        allowed["dx"][b, max(first, t - width + 1, 0) : seen.stop, c] = True
        if end == length:
            allowed["last_state"][b, c] = True
        for name in ("dweight", "dbias"):
            if name in changed:
                allowed[name][c] = True
        if "dinitial_state" in changed and first < 0:
            allowed["dinitial_state"][b, c] = True
    for result, places in changed.items():
        stray = (places.cpu() & ~allowed[result].cpu()).nonzero().tolist()
        assert not stray, f"{value} in x{[b, t, c]} reaches {result}{stray[0]}"
