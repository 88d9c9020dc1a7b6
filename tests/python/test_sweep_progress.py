"""Progress of a sweep, from made-up run folders and a clock that the test turns."""

import pytest

from dmamba.engines.runner import STOPPED
from dmamba.sweeps.sweep_progress import SweepProgress, Watch, duration

HEADER = "step,training/loss,training/grad_norm,training/learning_rate,training/skipped\n"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def write_rows(folder, *steps, steps_in_all=100, loss=0.5):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(f"training:\n  steps: {steps_in_all}\n")
    rows = "".join(f"{step},{loss},1.0,0.001,0\n" for step in steps)
    (folder / "metrics.csv").write_text(HEADER + rows)


def test_a_run_by_its_files(tmp_path):
    run = tmp_path / "run"
    watch = Watch(run)
    assert watch.state(0.0) is None
    write_rows(run)
    assert watch.state(1.0) is None, "a header is no row"
    write_rows(run, 10)
    state = watch.state(2.0)
    assert (state.step, state.steps, state.loss) == (10, 100, 0.5)
    assert state.line() == "run: step 10 of 100, loss 0.5000", "no speed from one row"
    write_rows(run, 10, 20, 30, loss=0.25)
    state = watch.state(6.0)
    assert (state.steps_per_s, state.eta) == (5.0, 14.0)
    assert state.line() == "run: step 30 of 100, loss 0.2500, 5.0 steps/s, 0:14 to go"
    assert watch.state(10.0).eta == 10.0, "time goes on between rows"
    with open(run / "metrics.csv", "a") as file:
        file.write("40,0.1")  # half a row
    assert watch.state(11.0).step == 30
    write_rows(run, 100)
    assert watch.state(12.0).line() == "run: step 100 of 100, loss 0.5000, evaluating"


def test_rows_of_an_earlier_process_are_no_sign_of_life(tmp_path):
    write_rows(tmp_path / "run", 10, 20)
    watch = Watch(tmp_path / "run")
    assert watch.state(0.0) is None
    write_rows(tmp_path / "run", 10, 20, 30)
    assert watch.state(1.0).steps_per_s is None and watch.first_step == 30


def test_the_overall_line(tmp_path, clock):
    runs = [tmp_path / f"run{number}" for number in range(8)]
    shown = SweepProgress(10, 2, enabled=False, clock=clock)
    shown.watch(runs)
    assert shown.overall() == "2 done, 0 failed, 0 running, 8 left"
    write_rows(runs[0], 1)
    write_rows(runs[1], 1)
    shown.states()
    clock.now += 60.0
    shown.ended(runs[2], "", "")
    write_rows(runs[0], 51)
    write_rows(runs[1], 51)
    # Done: 1 + 0.5 + 0.5 runs a minute. Left: 5 and twice 0.49.
    assert shown.overall() == "3 done, 0 failed, 2 running, 5 left, 2:59 to go"
    shown.ended(runs[0], "", "exit code 1")
    shown.ended(runs[1], "", STOPPED)
    assert (shown.done, shown.failed) == (3, 1)
    shown.skip(2, "")
    assert shown.done == 5


def test_lines_where_there_is_no_terminal(tmp_path, clock, capsys):
    shown = SweepProgress(3, clock=clock, live=False)
    runs = [tmp_path / f"run{number}" for number in range(3)]
    shown.watch(runs)
    for _ in range(150):  # two and a half minutes
        clock.now += 1.0
        shown.tick()
    shown.ended(runs[0], "run0: fine", "")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["sweep: 0 done, 0 failed, 0 running, 3 left"] * 2 + ["run0: fine"]


def test_quiet(tmp_path, clock, capsys):
    with SweepProgress(2, enabled=False, clock=clock) as shown:
        shown.ended(tmp_path / "a", "a: fine", "")
        shown.ended(tmp_path / "b", "b: exit code 1", "exit code 1")
        shown.ended(tmp_path / "c", "c: stopped", STOPPED)
        clock.now += 100.0
        shown.tick()
    assert capsys.readouterr() == ("", "b: exit code 1\n")


def test_bars_on_a_terminal(tmp_path, clock, capsys):
    runs = [tmp_path / f"run{number}" for number in range(3)]
    with SweepProgress(3, clock=clock, live=True) as shown:
        shown.watch(runs)
        for run in runs[:2]:
            write_rows(run, 10)
        shown.tick()
        shown.ended(runs[0], "run0: fine", "")
        write_rows(runs[2], 40)
        shown.tick()
    out, err = capsys.readouterr()
    assert out == "run0: fine\n"
    assert "run1: step 10 of 100" in err and "run2: step 40 of 100" in err
    assert "1 done, 0 failed, 2 running, 0 left" in err


def test_durations():
    assert [duration(s) for s in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
