"""Operators and model in plain PyTorch: what the library's own are tested and measured against.

Written for reading: one line of the equations is one line of code, in any floating dtype.
"""

from dmamba.reference.causal_conv1d import causal_conv1d
from dmamba.reference.model import DMamba, Mamba
from dmamba.reference.selective_scan import selective_scan, selective_scan_materialized

__all__ = ["DMamba", "Mamba", "causal_conv1d", "selective_scan", "selective_scan_materialized"]
