"""``dmamba info``: versions, instruction sets, CUDA; what a bug report needs."""

from __future__ import annotations

import argparse

import torch

from dmamba import _C, _build_info, summary

HELP = "Show versions, instruction sets, threads, and whether CUDA is used and why."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints one line per fact."""
    facts = {name: version or "not installed" for name, version in summary.versions().items()}
    facts["built for torch"] = _build_info.torch_version
    facts["build type"] = _build_info.build_type
    facts["instructions"] = str(_C.cpu_capability())
    facts["threads"] = str(torch.get_num_threads())
    facts["CUDA"] = _cuda()
    width = max(map(len, facts))
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items()))
    return 0


def _cuda() -> str:
    if _build_info.cuda_reason:
        return f"no: {_build_info.cuda_reason}"
    architectures = _build_info.cuda_architectures.replace(";", ", ")
    built = f"built for architectures {architectures}"
    if not torch.cuda.is_available():
        return f"no: {built}, but torch (CUDA {torch.version.cuda}) finds no usable GPU or driver"
    major, minor = torch.cuda.get_device_capability()
    return f"yes: {torch.cuda.get_device_name()}, capability {major}.{minor}; {built}"
