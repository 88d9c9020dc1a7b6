"""Videos: of games and of MuJoCo, their files, their errors."""

import builtins

import imageio.v2
import numpy as np
import pytest
from PIL import Image
from test_atari_evaluation import STEPS, games_run  # noqa: F401

import dmamba
from dmamba.evaluation import video


def test_a_game_as_mp4(games_run, tmp_path):  # noqa: F811
    path = tmp_path / "game.mp4"
    film = dmamba.record_video(games_run, path)
    result = dmamba.evaluate(games_run, progress=False, num_envs=1)
    assert film["return"] == result["targets"][0]["returns"][0]
    assert (film["target"], film["length"], film["frames_per_second"]) == (90.0, STEPS, 15.0)
    assert film["environment"] == "ALE/Breakout-v5" and film["path"] == path
    with imageio.v2.get_reader(path) as reader:
        assert reader.get_meta_data()["size"] == (320, 420)
        assert reader.get_meta_data()["fps"] == 15.0
        frames = [np.asarray(frame) for frame in reader]
    assert len(frames) == STEPS + 1
    assert frames[0].std() > 10  # the walls and bricks
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name] == []


def test_a_game_as_gif(games_run, tmp_path):  # noqa: F811
    film = dmamba.record_video(games_run, tmp_path / "game.gif", target=5)
    assert film["target"] == 5.0
    with Image.open(film["path"]) as image:
        assert image.size == (320, 420) and image.n_frames > 1
        assert image.info["duration"] % 10 == 0 and image.info["duration"] >= 60


def test_mujoco(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    film = dmamba.record_video(trained, tmp_path / "hopper.mp4", target=300)
    assert (film["environment"], film["frames_per_second"]) == ("Hopper-v4", 125.0)
    with imageio.v2.get_reader(film["path"]) as reader:
        assert reader.get_meta_data()["size"] == (480, 480)
        assert sum(1 for _ in reader) == film["length"] + 1
    result = dmamba.evaluate(trained, targets=[300], episodes=1, progress=False)
    assert film["return"] == result["targets"][0]["returns"][0]


def test_a_gif_of_many_frames_a_second_leaves_some_out(tmp_path):
    with video._writer(tmp_path / "fast.gif", 125.0) as add:
        for shade in range(10):
            add(np.full((400, 400, 3), 20 * shade, dtype=np.uint8))
    with Image.open(tmp_path / "fast.gif") as image:
        assert image.n_frames == 4 and image.info["duration"] == 20


def test_a_driver_that_fails_is_explained(trained, tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("no display")

    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr("dmamba.envs.vector.Environments.render", fails)
    message = r"cannot be drawn: RuntimeError: no display; MUJOCO_GL is 'glfw': set it to egl"
    with pytest.raises(dmamba.Error, match=message):
        dmamba.record_video(trained, tmp_path / "hopper.gif")
    assert list(tmp_path.glob("*hopper*")) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_an_old_file_stays_where_the_new_one_fails(tmp_path, suffix):
    path = tmp_path / f"play{suffix}"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), video._writer(path, 15.0) as add:
        add(np.zeros((84, 84, 3), dtype=np.uint8))
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.glob("*play*")] == [
        path.name
    ]


def test_paths_that_are_none(tmp_path):
    with pytest.raises(dmamba.ConfigError, match=r"play\.avi: a video is a \.mp4 or a \.gif file"):
        video.check_path(tmp_path / "play.avi")
    with pytest.raises(dmamba.ConfigError, match="there is no folder .*nowhere"):
        video.check_path(tmp_path / "nowhere" / "play.gif")


def test_ffmpeg_that_is_missing(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments):
        if name == "imageio_ffmpeg":
            raise ImportError("No module named 'imageio_ffmpeg'")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(dmamba.Error, match=r"'imageio_ffmpeg'.*pip install 'imageio\[ffmpeg\]'"):
        video.check_path(tmp_path / "play.mp4")
    video.check_path(tmp_path / "play.gif")
