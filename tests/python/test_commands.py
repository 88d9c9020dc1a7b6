"""The command line: every command once, and how errors end."""

import json
import subprocess
import sys

import pytest
from conftest import tiny

import dmamba
from dmamba.commands import COMMANDS, main


@pytest.fixture
def recipe(dataset, elsewhere):
    """A configuration file that trains in a second."""
    (elsewhere / "tiny.yaml").write_text(json.dumps(tiny(dataset, steps=8)))
    return "tiny.yaml"


def test_info(capsys):
    assert main(["info"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["dmamba"] == dmamba.__version__
    assert facts["instructions"] in ("portable", "avx2", "avx512")
    assert facts["CUDA"].startswith(("no: ", "yes"))


def test_data_info(dataset, capsys):
    assert main(["data", "info", str(dataset), "hopper-medium"]) == 0
    out = capsys.readouterr().out
    assert str(dataset) in out and "hopper-medium.hdf5" in out and out.count("D4RL score") == 2


def test_data_info_of_a_game(capsys):
    assert main(["data", "info", "samples/Breakout", "--game", "breakout"]) == 0
    out = capsys.readouterr().out
    assert "Breakout" in out and "games          16" in out and "clipped return" in out


def test_data_list_says_how_games_are_had(capsys):
    assert main(["data", "list"]) == 0
    assert "gs://atari-replay-datasets/dqn/Breakout/1/replay_logs" in capsys.readouterr().out


def test_data_record(elsewhere, capsys):
    words = ["--random", "--environment", "Hopper-v4", "--episodes", "3", "--seed", "2"]
    assert main(["data", "record", *words, "--output", "new/random.hdf5"]) == 0
    out = capsys.readouterr().out
    assert "new/random.hdf5" in out and "D4RL score" in out and "policy: random" in out
    assert dmamba.data.load("new/random.hdf5").num_episodes == 3
    words = ["--random", "--environment", "Breakout", "--episodes", "1", "--output", "new"]
    assert main(["data", "record", *words]) == 0
    assert "clipped return" in capsys.readouterr().out


def test_train_then_evaluate(recipe, elsewhere, capsys):
    assert main(["train", recipe, "--output", "out", "evaluation.episodes=2", "seed=5"]) == 0
    out = capsys.readouterr().out
    assert "dataset mean" in out and "run folder  out" in out
    assert dmamba.Run("out").config.seed == 5
    arguments = ["--targets", "100", "300", "--episodes", "2", "--policy", "recurrent"]
    assert (
        main(
            [
                "evaluate",
                "out",
                *arguments,
                "--seed",
                "3",
                "--workers",
                "2",
                "--output",
                "result.json",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "recurrent policy, 2 episodes a target, seed 3" in out and "dataset mean" in out
    result = json.loads((elsewhere / "result.json").read_text())
    assert [row["target"] for row in result["targets"]] == [100.0, 300.0]
    assert f"{result['targets'][1]['return_mean']:.1f}" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "out"],
        ["--resume", "--output", "out"],
        ["tiny.yaml", "--resume", "--output", "out"],
        ["tiny.yaml", "--output", "out", "--resume", "seed=7"],
        ["--resume", "out", "seed=7"],
    ],
)
def test_the_ways_to_resume(recipe, words):
    assert main(["train", recipe, "--output", "out", "--no-evaluate", "--no-progress"]) == 0
    assert main(["train", *words, "--no-evaluate", "--no-progress"]) == 0
    assert dmamba.Run("out").summary()["times"]["first_step"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no CONFIG given"),
        (["train", "nothing"], "no configuration named 'nothing'"),
        (["train", "hopper-sample", "training.stepz=3"], "training.stepz"),
        (["train", "hopper-sample", "--resume"], "not a run folder"),
        (["train", "hopper-sample", "--log-level", "loud"], "loud"),
        (["train", "--resume", "a", "--output", "b"], "--output must not"),
        (["sweep", "hopper-sample", "K=5,1000"], "grid point model.context_length=1000: "),
        (["sweep", "hopper-sample", "training.stepz=3"], "training.stepz"),
        (["evaluate", "nowhere"], "nowhere: no such folder"),
        (["evaluate", "nowhere", "--output", "."], ".: a folder; give the file to write"),
        (["data", "info", "nowhere.hdf5"], "dataset 'nowhere.hdf5' not found"),
        (["data", "info"], "data info: no dataset given"),
        (["data", "info", "."], ".: no recording in the DQN-replay layout"),
        (
            ["data", "record", "--output", "x", "--episodes", "1"],
            "give one RUN, or none and --rand",
        ),
        (["data", "record", "run", "--episodes", "1"], "data record: no --output given"),
        (["data", "record", "run", "--random", "--output", "x"], "got run"),
        (["data", "record", "nowhere", "--output", "x", "--episodes", "1"], "no such folder"),
        (["data", "info", "x", "--num-envs", "3"], "data info takes no --num-envs; data record"),
        (["data", "list", "--random"], "data list takes no --random"),
        (["data", "list", "x"], "data list takes no names, got x"),
        (["data", "download", "x"], "no dataset named 'x' can be downloaded"),
        (["fly"], "no command 'fly'; there are train, sweep"),
        (["evalute", "run"], "no command 'evalute'; did you mean 'evaluate'?"),
        (["--versoin"], "no option '--versoin'; did you mean '--version'?"),
        (
            ["evaluate", "run", "--episodes", "many"],
            "argument --episodes: invalid int value: 'many'",
        ),
        (["evaluate", "run", "--epsiodes=3"], "'--epsiodes'; did you mean '--episodes'?"),
        (["evaluate", "run", "more"], "evaluate: unknown argument 'more'"),
        (["evaluate", "run", "--policy", "recurent"], "recurrent; did you mean 'recurrent'?"),
        (["evaluate"], "evaluate: the following arguments are required: RUN"),
        (["data", "lst"], "record; did you mean 'list'? (dmamba data --help"),
        (["info", "--quiet", "--verbose"], "not allowed with argument"),
        (["train", "hoper-sample"], "give a file; did you mean 'hopper-sample'?"),
        (["benchmark", "--seconds", "0"], "seconds must be positive, got 0.0"),
        (["benchmark", "--threads", "0"], "threads must be at least 1, got 0"),
        (["benchmark", "--precision", "tf32", "--device", "cpu"], "precision"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("dmamba: error: ") and message in err
    more = err.splitlines()[1:]  # such as the places where a dataset was looked for
    assert all(line.startswith("  ") for line in more) and out == ""


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2
    assert capsys.readouterr() == ("", out)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dmamba {dmamba.__version__}\n"
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert COMMANDS[name].HELP.split()[0] in capsys.readouterr().out


def test_as_a_process():
    command = [sys.executable, "-m", "dmamba", "evaluate", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "dmamba: error: nowhere: no such folder\n"
