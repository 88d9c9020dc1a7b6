"""What holds for every command: help, examples, --json, --quiet, --verbose, streams, exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny

import dmamba
from dmamba import _C
from dmamba.commands import COMMANDS, answers, info, main, parsing

OF_ANSWERS = ("info", "benchmark", "evaluate", "context")  # without data, whose actions differ


def as_process(words, **streams):
    """Runs the command line as a process of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", "dmamba", *words]
    return subprocess.run(command, text=True, timeout=300, **streams)


def document(capsys, words):
    """What a command prints with --json, and what it says beside it."""
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return found, err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_commands(name):
    parser = parsing.make_parser(name, COMMANDS[name])
    assert COMMANDS[name].EXAMPLES
    for line, what in COMMANDS[name].EXAMPLES:
        words = shlex.split(re.split(r" [|>] ", line)[0])
        assert words[:2] == ["dmamba", name] and what
        parser.parse(words[2:])


@pytest.mark.parametrize("columns", [60, 80, 300])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits(name, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "\nexamples:\n" in out and "--quiet" in out and "\033" not in out
    assert max(map(len, out.splitlines())) <= min(columns, parsing.MAX_WIDTH)


def test_the_list_of_commands_fits(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert re.findall(r"^  (\w+)  ", out, re.MULTILINE) == list(COMMANDS)


def test_an_example_on_a_narrow_terminal_can_still_be_copied():
    line = "dmamba evaluate RUN --json | jq '.targets[0] | .return_mean'"
    text = parsing.format_examples([(line, "a number")], width=30)
    assert text.splitlines()[1] == "  # a number"
    copied = "\n".join(text.splitlines()[2:])
    assert len(copied.splitlines()) == 3 and shlex.split(copied.replace("\\\n", "")) == shlex.split(
        line
    )
    assert parsing.format_examples([(line, "a number")], width=80).endswith("  # a number")


def test_colours_where_they_are_asked_for(monkeypatch, capsys):
    for name in ("NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["fly"]) == 2
    assert capsys.readouterr().err.startswith("dmamba: \033[31merror:\033[0m no command")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["fly"]) == 2
    assert capsys.readouterr().err.startswith("dmamba: error: no command")


def test_json_of_what_json_does_not_know():
    value = {
        1: [float("nan"), np.float32("inf"), -np.inf, 0.5],
        "array": np.array([[1.0, np.nan]]),
        "path": dmamba.data.PACKAGE_FOLDER,
        "numbers": (np.int64(3), True, None),
    }
    assert json.loads(answers.to_json(value)) == {
        "1": [None, None, None, 0.5],
        "array": [[1.0, None]],
        "path": str(dmamba.data.PACKAGE_FOLDER),
        "numbers": [3, True, None],
    }


def test_json_of_what_is_known_without_a_run(dataset, capsys):
    found, err = document(capsys, ["info"])
    assert found["versions"]["dmamba"] == dmamba.__version__ and err == ""
    assert set(found["cuda"]) == {"usable", "reason", "architectures", "device", "capability"}
    assert found["cuda"]["usable"] == (found["cuda"]["device"] is not None)
    found, _ = document(capsys, ["data", "info", str(dataset), "samples/Breakout"])
    assert [one["episodes"] for one in found] == [5, 16]
    assert found[1]["score_mean"] is None
    found, _ = document(capsys, ["data", "list"])
    assert "hopper-medium-v2" in [one["name"] for one in found]
    settings = [f"dataset.path={dataset}", "model.context_length=5"]
    found, _ = document(capsys, ["context", "hopper-sample", *settings, "--lengths", "5", "10"])
    assert found["half_lives"] is None and found["proposed"] in (5, 10)
    assert [one["context_length"] for one in found["lengths"]] == [5, 10]
    assert set(found["episode_lengths"]) == {"0", "0.1", "0.5", "0.9", "0.99", "1"}


def test_json_of_a_run(trained, capsys):
    words = ["evaluate", str(trained.folder), "--episodes", "2", "--targets", "100"]
    found, err = document(capsys, words)
    (row,) = found["targets"]
    assert len(row["returns"]) == row["episodes"] == 2 and "evaluating" in err
    found, err = document(capsys, [*words, "--context-length", "3,5", "--quiet"])
    assert list(found["context_lengths"]) == ["3", "5"] and err == ""
    found, _ = document(capsys, ["context", str(trained.folder)])
    assert set(found["half_lives"][0]) == {"0.1", "0.5", "0.9", "0.99"}


def test_json_of_commands_that_make_files(dataset, elsewhere, capsys):
    config = tiny(dataset, steps=8)
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    found, err = document(capsys, ["train", "tiny.json", "--output", "run"])
    assert found["folder"] == "run" and found["steps"] == 8
    summary = dmamba.Run("run").summary()
    assert found == {"folder": "run", **summary} and "run folder  run" in err
    found, err = document(capsys, ["report", "run"])
    assert found["runs"] == 1 and found["html"] == "run/report.html" and err == ""
    assert {row["target"] for row in found["rows"]} == {100.0, 500.0}
    words = ["data", "record", "--random", "--environment", "Hopper-v4", "--episodes", "1"]
    found, _ = document(capsys, [*words, "--output", "random.hdf5"])
    assert [one["episodes"] for one in found] == [1]


def test_of_torchrun_s_processes_one_prints(trained, monkeypatch, capsys):
    monkeypatch.setattr(COMMANDS["train"], "train", lambda *words, **options: trained)
    for rank, printed in (("1", False), ("0", True)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "hopper-sample", "--json"]) == 0
        assert bool(capsys.readouterr().out) == printed


def test_json_of_a_sweep_where_a_run_has_failed(monkeypatch, capsys):
    folder, rows = Path("out"), [{"seeds": 1, "failed_seeds": "1", "loss": float("nan")}]
    found = dmamba.Sweep(folder, rows, {folder / "seed1": "exit code 2"})

    def sweep(*arguments, **options):
        print("runs in out: 2")
        return found

    monkeypatch.setattr(COMMANDS["sweep"], "sweep", sweep)
    assert main(["sweep", "hopper-sample", "seed=0,1", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "folder": "out",
        "rows": [{"seeds": 1, "failed_seeds": "1", "loss": None}],
        "failures": {"out/seed1": "exit code 2"},
    }
    assert err == "runs in out: 2\n"


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_there_is_json_for_every_answer(name):
    assert COMMANDS[name].JSON


def test_quiet_leaves_answers_and_errors(trained, dataset, elsewhere, capsys):
    assert main(["evaluate", str(trained.folder), "--episodes", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "D4RL score" in out and err == ""
    (elsewhere / "tiny.json").write_text(json.dumps(tiny(dataset, steps=8)))
    assert main(["train", "tiny.json", "--output", "run", "-q"]) == 0
    assert main(["report", "run", "--quiet"]) == 0
    assert main(["train", "tiny.json", "--output", "other", "--no-progress", "--no-evaluate"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["report", "nowhere", "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ([], "warning"),
        (["-v"], "info"),
        (["-vv"], "debug"),
        (["-vvv"], "debug"),
        (["--verbose"], "info"),
        (["-v", "--log-level", "error"], "error"),
        (["--quiet"], "warning"),
    ],
)
def test_verbosity_is_that_of_the_log(words, level, capsys):
    before = _C.log_level()
    try:
        assert main(["info", *words]) == 0
        assert _C.log_level() == level
    finally:
        _C.set_log_level(before)


def test_verbose_says_where_an_error_comes_from(capsys):
    assert main(["evaluate", "nowhere", "-v"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "locate_checkpoint" in err
    assert err.splitlines()[-1] == "dmamba: error: nowhere: no such folder"


def test_a_warning_is_one_line(monkeypatch, capsys):
    def run(arguments):
        print(warnings.formatwarning("take care", UserWarning, "file.py", 3), end="")
        return 0

    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == 0
    assert capsys.readouterr().out == "dmamba: warning: take care\n"
    assert "file.py:3" in warnings.formatwarning("take care", UserWarning, "file.py", 3)


def test_a_signal_is_128_and_its_number(monkeypatch):
    def stopped(arguments):
        raise dmamba.common.signals.Interrupted(signal.SIGTERM, None)

    def pressed(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", stopped)
    assert main(["info"]) == 143
    monkeypatch.setattr(info, "run", pressed)
    assert main(["info"]) == 130


def test_a_command_may_print_by_itself(monkeypatch):
    monkeypatch.setattr(info, "run", lambda arguments: 7)
    assert main(["info"]) == 7


def test_a_reader_that_has_gone_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    done = as_process(["data", "list"], stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = as_process(["data", "list"], stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["dmamba: error: [Errno 28] No space left on device"]


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, capsys):
    def broken(arguments):
        raise BrokenPipeError(32, "a worker's pipe")

    monkeypatch.setattr(info, "run", broken)
    assert main(["info"]) == 2
    assert "a worker's pipe" in capsys.readouterr().err


def test_nothing_but_the_document_reaches_stdout():
    """Not what the interpreter, a C library or a child process prints meanwhile."""
    program = (
        "import os, subprocess, sys\n"
        "from dmamba.commands import answers, info, main\n"
        "def run(arguments):\n"
        "    print('printed')\n"
        "    os.write(1, b'written\\n')\n"
        "    subprocess.run(['echo', 'of a child'], check=True)\n"
        "    return answers.Answer('text', {'key': 1})\n"
        "info.run = run\n"
        "sys.exit(main(['info', '--json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, '{\n  "key": 1\n}\n')
    assert sorted(done.stderr.split("\n")) == ["", "of a child", "printed", "written"]
