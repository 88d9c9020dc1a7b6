"""``dmamba info``: versions, instruction sets, CUDA; what a bug report needs."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from dmamba import _C, _build_info
from dmamba.commands.answers import Answer
from dmamba.common import terminal
from dmamba.training import summary

HELP = "Show versions, instruction sets, threads, and whether CUDA is used and why."
EXAMPLES = (("dmamba info", "for a bug report"), ("dmamba info --json", "for a script"))
JSON = "the same facts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> Answer:
    """One line per fact."""
    found = facts()
    return Answer(terminal.format_facts(_lines(found)), found)


def facts() -> dict[str, Any]:
    """What ``dmamba info --json`` prints; docs/command-line.md has the keys."""
    return {
        "versions": summary.versions(),
        "built_for_torch": _build_info.torch_version,
        "build_type": _build_info.build_type,
        "instructions": _C.cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": _cuda(),
    }


def _lines(found: dict[str, Any]) -> dict[str, str]:
    lines = {name: version or "not installed" for name, version in found["versions"].items()}
    lines["built for torch"] = found["built_for_torch"]
    lines["build type"] = found["build_type"]
    lines["instructions"] = found["instructions"]
    lines["threads"] = str(found["threads"])
    lines["CUDA"] = _cuda_line(found["cuda"])
    return lines


def _cuda() -> dict[str, Any]:
    """Whether a GPU can be used; why not, else which."""
    found: dict[str, Any] = {"usable": False, "reason": _build_info.cuda_reason or None}
    found |= {"architectures": [], "device": None, "capability": None}
    if _build_info.cuda_reason:
        return found
    found["architectures"] = _build_info.cuda_architectures.split(";")
    if not torch.cuda.is_available():
        found["reason"] = f"torch (CUDA {torch.version.cuda}) finds no usable GPU or driver"
        return found
    major, minor = torch.cuda.get_device_capability()
    return found | {
        "usable": True,
        "device": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
    }


def _cuda_line(found: dict[str, Any]) -> str:
    built = f"built for architectures {', '.join(found['architectures'])}"
    if found["usable"]:
        return f"yes: {found['device']}, capability {found['capability']}; {built}"
    return (
        f"no: {built}, but {found['reason']}"
        if found["architectures"]
        else f"no: {found['reason']}"
    )
