"""Model cards: the README.md of a pretrained folder, in the form that the Hugging Face hub reads.

https://huggingface.co/docs/hub/model-cards describes the head, YAML between two lines of dashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dmamba import _C, envs
from dmamba.common import scores
from dmamba.envs import failures

_PAPER = "[Decision Mamba](https://arxiv.org/abs/2403.19925)"


def write(name: str, content: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """The text of a card.

    Args:
        name: Of the model.
        content: Of its config.json.
        evaluation: What :func:`dmamba.evaluate` returned, or its JSON; None: not evaluated.

    Raises:
        ConfigError: An ``evaluation`` that is something else.
    """
    try:
        return _write(name, content, evaluation)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if evaluation is None:
            raise
        raise _C.ConfigError(
            f"evaluation: not what dmamba.evaluate returns for one context length ({error!r})"
        ) from None


def _write(name: str, content: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    kind = content["architectures"][0]
    environment = content["config"]["dataset"]["environment"]
    parts = [_head(name, environment, content, evaluation), f"# {name}\n"]
    parts.append(_origin(content))
    if evaluation is not None:
        parts.append(_scores(evaluation))
    use = [f'model = dmamba.nn.{kind}.from_pretrained("{name}")']
    if environment:
        target = (content["config"]["evaluation"]["targets"] or [0])[0]
        use.append(f'results = dmamba.evaluate("{name}", targets=[{target:g}], episodes=100)')
    parts.append(
        "## Use\n\n```python\nimport dmamba\n\n" + "\n".join(use) + "\n```\n\n"
        f"`dmamba.nn.load({name!r})` also returns the states' normalisation and the scale of "
        "returns. `model.safetensors` holds the parameters under the names of `state_dict()`.\n"
    )
    if content["config"]["dataset"]["path"]:
        config = _C.Config.parse(json.dumps(content["config"])).to_yaml().strip()
        parts.append(
            "## Training\n\n`dmamba train config.yaml` with this as config.yaml repeats it"
            f" (dmamba {content['dmamba_version']}):\n\n```yaml\n{config}\n```\n"
        )
    return "\n".join(parts)


def _head(
    name: str,
    environment: str,
    content: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> str:
    tags = ["reinforcement-learning", "offline-reinforcement-learning", "decision-mamba", "mamba"]
    lines = ["---", "library_name: dmamba", "pipeline_tag: reinforcement-learning", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in [*tags, *([environment] if environment else [])]]
    if evaluation is not None:
        best = max(evaluation["targets"], key=lambda row: row["return_mean"])
        error = best["return_stderr"]
        value = f"{best['return_mean']:.1f}" + ("" if error is None else f" +/- {error:.1f}")
        lines += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task:",
            "      type: reinforcement-learning",
            "    dataset:",
            f"      name: {json.dumps(evaluation['environment'])}",
            f"      type: {json.dumps(evaluation['environment'])}",
            "    metrics:",
            "    - type: mean_reward",
            f"      value: {json.dumps(value)}",
            f"      name: mean return at target {best['target']:g}",
        ]
    return "\n".join([*lines, "---\n"])


def _origin(content: Mapping[str, Any]) -> str:
    data, version = content["config"]["dataset"], content["dmamba_version"]
    if not data["environment"]:
        return f"A model of {_PAPER}, saved by dmamba {version}.\n"
    words = [f"A policy of {_PAPER} for {data['environment']}"]
    if content["step"]:
        words.append(f"after {content['step']} steps of offline training")
    if data["path"]:
        words.append(f"on {data['path']}, seed {content['config']['seed']}")
    return " ".join(words) + f", saved by dmamba {version}.\n"


def _scores(evaluation: Mapping[str, Any]) -> str:
    """The table of an evaluation, as the hub shows it."""
    scored = evaluation["constants"] is not None
    percent = f"{100 * evaluation['confidence']:g} % interval"
    label = envs.scale_of(evaluation["environment"]).label
    columns = ["target", "return", "std error", percent, *([label, percent] if scored else [])]
    some_failed = bool(evaluation.get("failures"))
    columns += ["failed"] if some_failed else []
    rows = [columns, ["---:"] * len(columns)]
    for row in evaluation["targets"]:
        error = row["return_stderr"]
        cells = [
            f"{row['target']:g}",
            f"{row['return_mean']:.1f}",
            "" if error is None else f"{error:.1f}",
            scores.format_interval(row["return_interval"]),
        ]
        if scored:
            cells += [f"{row['score_mean']:.1f}", scores.format_interval(row["score_interval"])]
        rows.append([*cells, *([failures.format_count(row)] if some_failed else [])])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    failed = failures.describe(dict(evaluation), evaluation["targets"][0]["episodes"])
    return (
        f"## Scores\n\n{evaluation['environment']}, {evaluation['policy']} policy, step "
        f"{evaluation['checkpoint_step']}, {evaluation['targets'][0]['episodes']} episodes a "
        f"target, seed {evaluation['seed']}:\n\n{table}\n\n"
        f"{envs.describe_constants(evaluation['constants'])}.\n"
        + (f"\n{failed[0].upper()}{failed[1:]}.\n" if failed else "")
    )
