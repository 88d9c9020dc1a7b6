"""Downloads through minari, from a remote of the tests' own that can fail, truncate and lie."""

import json
import shutil
import sys

import minari
import pytest
from gymnasium.spaces import Discrete
from minari.storage import remotes
from minari_made import ID, LENGTHS, VECTOR, make

import dmamba
from dmamba import data
from dmamba.commands import main
from dmamba.data import minari_folders


class Remote(remotes.CloudStorage):
    """Has what lies in a folder; ``moods`` is a list of what goes wrong, one a download."""

    folder = None
    moods: list[str] = []
    downloads = 0

    def __init__(self, name, token=None):
        if "down" in Remote.moods:
            raise ConnectionError("no route to the host\nwhich is a pity")

    def list_datasets(self, prefix=None):
        found = [path.parents[1] for path in self.folder.rglob("data/metadata.json")]
        names = [path.relative_to(self.folder).as_posix() for path in found]
        return [name for name in names if name.startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id):
        return json.loads((self.folder / dataset_id / "data" / "metadata.json").read_text())

    def download_dataset(self, dataset_id, path):
        Remote.downloads += 1
        mood = Remote.moods.pop(0) if Remote.moods else ""
        source, target = self.folder / dataset_id / "data", path / dataset_id / "data"
        if mood == "nothing":
            return
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "metadata.json", target)
        if mood == "drop":
            raise TimeoutError("the connection ended")
        content = (source / "main_data.hdf5").read_bytes()
        content = content[: len(content) // 2] if mood == "truncate" else content
        (target / "main_data.hdf5").write_bytes(content)
        if mood == "lie":
            told = (source / "metadata.json").read_text()
            told = told.replace(f'"total_steps": {sum(LENGTHS)}', '"total_steps": 999')
            (target / "metadata.json").write_text(told)

    def list_namespaces(self):
        found = self.folder.rglob("namespace_metadata.json")
        return [path.parent.relative_to(self.folder).as_posix() for path in found]

    def download_namespace_metadata(self, namespace, path):
        (path / namespace).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / namespace / "namespace_metadata.json", path / namespace)

    upload_dataset = upload_namespace = None


@pytest.fixture
def root(elsewhere, monkeypatch):
    """Where downloads go; the remote has one dataset."""
    Remote.folder, Remote.moods, Remote.downloads = elsewhere / "remote", [], 0
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Remote.folder))
    make(ID, env="Hopper-v5")
    monkeypatch.setitem(remotes._registry, "test", lambda: Remote)
    monkeypatch.setenv("MINARI_REMOTE", "test://anything")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere / "sets"))
    return elsewhere / "sets"


def files(root) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


WHOLE = [
    f"{ID}/data/main_data.hdf5",
    f"{ID}/data/metadata.json",
    "mujoco/hopper/namespace_metadata.json",
    "mujoco/namespace_metadata.json",
]


def test_load_downloads_once(root, capsys):
    for _ in range(2):
        assert data.load(ID).num_episodes == len(LENGTHS)
    assert Remote.downloads == 1 and files(root) == WHOLE
    assert [path.name for path in root.iterdir()] == ["mujoco"], "the hidden folder is gone"
    printed = capsys.readouterr()
    assert printed.out == "" and "Downloading" in printed.err
    assert list(minari.list_local_datasets()) == [ID], "Minari finds it, too"


def test_without_progress_nothing_is_printed(root, capsys):
    data.load(ID, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_command(root, capsys):
    for _ in range(2):
        assert main(["data", "download", ID]) == 0
        assert f"{ID}  0.1 MB  {root / ID}\n  whole" in capsys.readouterr().out
    assert Remote.downloads == 1
    (root / ID / "data" / "main_data.hdf5").write_bytes(b"something else")
    assert main(["data", "download", ID]) == 2
    assert "not an HDF5 file" in capsys.readouterr().err, "one that is here is read again"


def test_a_server_that_cannot_be_reached(root, capsys):
    Remote.moods = ["down"]
    with pytest.raises(dmamba.DataError, match="download it: ConnectionError: no route") as e:
        data.load(ID)
    assert "a pity" not in str(e.value), "the first line is enough"
    assert f"copy the folder to {root / ID}" in str(e.value) and "MINARI_REMOTE" in str(e.value)
    assert files(root) == [] and list(root.iterdir()) == []


def test_hugging_face_cannot_be_reached(root, monkeypatch):
    monkeypatch.delenv("MINARI_REMOTE")
    from minari.storage.remotes import huggingface

    def refuse(*arguments, **options):
        raise OSError("Connection refused")

    monkeypatch.setattr(huggingface.HfApi, "list_datasets", refuse)
    with pytest.raises(dmamba.DataError, match="download it: OSError: Connection refused"):
        data.load(ID)


def test_an_interrupted_download_is_not_used(root):
    Remote.moods = ["drop"]
    with pytest.raises(dmamba.DataError, match="TimeoutError: the connection ended.*come is kept"):
        data.load(ID)
    partial = f"{minari_folders.PARTIAL}/mujoco--hopper--medium-v0"
    assert f"{partial}/{ID}/data/metadata.json" in files(root), "as the message says"
    assert not (root / ID).exists()
    assert [row for row in data.listing() if row["url"] is None] == []
    assert data.load(ID).num_episodes == len(LENGTHS), "and is gone on with"
    assert files(root) == WHOLE


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("truncate", "not usable.*file is truncated"),
        ("lie", f"not usable.*has {sum(LENGTHS)} steps.*says 999"),
    ],
)
def test_what_is_not_usable_is_dropped(root, mood, message):
    Remote.moods = [mood]
    with pytest.raises(dmamba.DataError, match=message):
        data.load(ID)
    assert files(root) == []
    assert data.load(ID).num_episodes == len(LENGTHS)


def test_a_download_that_brings_nothing(root):
    Remote.moods = ["nothing"]
    with pytest.raises(dmamba.DataError, match="minari cannot download it|no folder of that name"):
        data.load(ID)
    assert not (root / ID).exists()


def test_what_the_server_has_not(root):
    with pytest.raises(dmamba.DataError, match="download it: ValueError: .*doesn't exist.*v0"):
        data.load("mujoco/hopper/medium-v7")
    with pytest.raises(dmamba.DataError, match="Couldn't find any version"):
        data.load("mujoco/hopper/large-v0")


def test_spaces_are_refused_before_anything_comes(root, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Remote.folder))
    make("toys/keys-v0", **{**VECTOR, "action_space": Discrete(3)})
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    with pytest.raises(dmamba.DataError, match="what the server says of it: actions are Discrete"):
        data.load("toys/keys-v0")
    assert Remote.downloads == 0


def test_without_minari(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(dmamba.DataError, match=r"needs minari .*pip install 'minari\[hf\]' pillow"):
        data.load(ID)


def test_without_the_hub_s_package(root, monkeypatch):
    monkeypatch.delenv("MINARI_REMOTE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "minari.storage.remotes.huggingface", raising=False)
    with pytest.raises(dmamba.DataError, match=r'downloads with: .*pip install "minari\[hf\]"'):
        data.load(ID)


def test_a_folder_that_cannot_be_made(root, monkeypatch, elsewhere):
    (elsewhere / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere / "file"))
    with pytest.raises(dmamba.DataError, match="cannot be made .*MINARI_DATASETS_PATH"):
        data.load(ID)


def test_names_that_cannot_be_minari_s_are_not_asked_for(root):
    Remote.moods = ["down"]
    for name in ("hopper-mediun-v2", "folder/file.hdf5", "mujoco/hopper", "../sets/x-v0"):
        with pytest.raises(dmamba.DataError, match="not found; looked for"):
            data.load(name)
