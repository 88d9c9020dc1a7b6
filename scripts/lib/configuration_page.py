"""Prints docs/configuration.md, from the table of fields that the library itself walks.

Names, types, defaults and meaning are those of include/dmamba/config/fields.h, as bound to Python.
What is allowed is what src/config/validate.cpp says when it is given a value that is not.
scripts/build_docs.sh compares the page with the one in the tree.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import dmamba
from dmamba.configuration import recipes

HEAD = """\
# Configuration

<!-- Written by scripts/build_docs.sh --fix from include/dmamba/config; edits here are lost. -->

Every setting of a run, with its default, what is allowed, and what it means. Settings have their
defaults in the code; YAML overrides them, `key=value` on the command line (`overrides` in Python)
overrides YAML:

```yaml
base: base/d4rl-locomotion     # another file to begin with, beside this one or in a folder there
name: mine
dataset:
  path: hopper-medium-v2
model: {{context_length: 10, token_mixer: [mamba, mamba, attention]}}
```

```sh
dmamba train mine.yaml training.steps=1000 d_model=256 "evaluation.targets=[1800,3600]"
```

A key may be given without its section where only one section has it. An unknown key, a value of
the wrong type or out of range is an error that names file, line and key. "From the data" means
that the value is filled in when the dataset has been read; `config.yaml` of a run folder holds
what came of it. Recipes that come with the package:

{recipes}
"""
TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "list[str]": "list of texts",
    "list[int]": "list of whole numbers",
    "list[float]": "list of numbers",
}
# Values that most fields refuse; the refusal says what is allowed instead.
PROBES = {
    "str": ("no-such-choice",),
    "int": ("-1",),
    "float": ("-1", "2"),
    "list[str]": ("[no-such-choice]",),
    "list[int]": ("[-1]",),
    "list[float]": ("[-1]",),
}
# Settings without which a field is refused whatever its value.
BEFORE = {"training.contexts": ["training.context=random"]}
MUST_BE = re.compile(r"(?:must be|choose) (.+?)(?: with [\w.]+=\w+)?(?:; | \([^)]*\)$|$)")


def type_of(section: type, field: str) -> str:
    """A field's type, from the signature that pybind11 writes."""
    signature = getattr(section, field).fget.__doc__
    return signature.rpartition("-> ")[2].strip()


def refusal(key: str, value: str) -> str | None:
    """What the library says to a value that it does not take; None where it takes it."""
    config = dmamba.Config()
    try:
        config.override([*BEFORE.get(key, ()), f"{key}={value}"])
        dmamba.nn.DMamba(1, 1, config.model)  # the names of token mixers are known here alone
    except dmamba.ConfigError as error:
        return str(error)
    return None


def allowed(key: str, kind: str) -> str:
    """What the library says of a field's values: its type, and its range or choices."""
    for probe in PROBES[kind]:
        said = refusal(key, probe)
        if said is None:
            continue
        found = MUST_BE.search(said)
        if found is None:
            return TYPES[kind] + (", at least 0" if "not negative" in said else "")
        if found[1].startswith("one of "):
            words = found[1].removeprefix("one of ").split(", ")
            several = "list of " if kind.startswith("list") else ""
            return several + ", ".join(f"`{word}`" for word in words)
        bounds = re.sub(r"^a finite number,? ", "", found[1])
        bounds = re.sub(r"\d{5,}", lambda number: f"{int(number[0]):,}", bounds)
        return f"{TYPES[kind]}, {bounds}"
    return TYPES[kind]


def default(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, str):
        return f"`{value}`" if value else "`''`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def meaning(text: str) -> str:
    """A field's text for a cell; the bar between two choices would end the cell."""
    return text.replace(" | ", "; ").replace("|", "\\|").replace("*", "\\*")


def rows(section: Any, prefix: str) -> Iterator[str]:
    """The rows of a section's table."""
    yield "| key | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, value in section.to_dict().items():
        if isinstance(value, dict):
            continue
        kind = type_of(type(section), name)
        cells = (f"`{name}`", default(value), allowed(prefix + name, kind))
        yield f"| {' | '.join(cells)} | {meaning(getattr(type(section), name).__doc__)} |"


def page() -> Iterator[str]:
    """The page's lines."""
    config = dmamba.Config()
    names = ", ".join(f"`{name}`" for name in recipes())
    yield HEAD.format(recipes=textwrap.fill(names, 98, break_on_hyphens=False))
    yield "## The run"
    yield ""
    yield from rows(config, "")
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            yield ""
            yield f"## {name}"
            yield ""
            yield f"{getattr(dmamba.Config, name).__doc__.capitalize()}."
            yield ""
            yield from rows(getattr(config, name), f"{name}.")


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in page())
