"""Files from strangers: mutated ones, and ones made to lead somewhere else or to run something.

The long campaign is scripts/nightly/fuzz.sh; here are a few hundred inputs of a fixed seed, and
what campaigns have found. docs/reliability.md has the table.
"""

import gzip
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import dmamba
from dmamba import _C, data
from dmamba.data import minari_folders

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
import make_corpora
import mutations

FOUND = Path(__file__).parents[1] / "data" / "found"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """The files that were checked are remembered there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    for name, write in make_corpora.WRITERS.items():
        (root / name).mkdir()
        write(root / name)
    return {
        name: [path.read_bytes() for path in sorted((root / name).iterdir())]
        for name in make_corpora.WRITERS
    }


def remembered() -> list[str]:
    path = Path(os.environ["HOME"]) / ".cache/dmamba/checked-files"
    return path.read_text().splitlines() if path.is_file() else []


def try_all(inputs, read, errors) -> None:
    """Reads each input; nothing but `errors` may come out, and some of both must."""
    accepted = refused = 0
    for content in inputs:
        try:
            read(content)
            accepted += 1
        except errors:
            refused += 1
    assert accepted and refused, (accepted, refused)


def mutated(seeds, count, mutate=mutations.mutate):
    generator = random.Random(5)
    for _ in range(count):
        yield mutate(generator.choice(seeds), generator)


@pytest.mark.parametrize("kind", ["d4rl", "minari", "converted"])
def test_mutated_hdf5(seeds, tmp_path, kind):
    path = tmp_path / "input.h5"

    def read(content):
        path.write_bytes(content)
        if kind == "converted":
            _C.open_replay(str(path)).frames.sum()
        else:
            _C.open_dataset(str(path))

    try_all([*seeds[kind], *mutated(seeds[kind], 60)], read, _C.DataError)


def test_mutated_shards(tmp_path):
    plain = []
    for values in make_corpora.shard():
        file = io.BytesIO()
        np.save(file, values)
        plain.append(file.getvalue())
    places = [tmp_path / f"$store$_{name}_ckpt.0.gz" for name in make_corpora.FIELDS]
    generator = random.Random(5)

    def read(number):
        which, packed = number % 4, number % 8 < 4
        for place, content in zip(places, plain, strict=True):
            place.write_bytes(gzip.compress(content, 1))
        if number:
            changed = mutations.mutate(
                places[which].read_bytes() if packed else plain[which], generator
            )
            places[which].write_bytes(changed if packed else gzip.compress(changed, 1))
        _C.open_replay(str(tmp_path))

    try_all(range(160), read, _C.DataError)


def test_mutated_configurations(seeds, tmp_path):
    path = tmp_path / "input.yaml"

    def read(content):
        path.write_bytes(content)
        config = _C.Config.load(str(path))
        assert _C.Config.parse(config.to_yaml()).to_yaml() == config.to_yaml()

    texts = [seed for seed in seeds["yaml"] if not seed.startswith(b"=")]
    try_all([*texts, *mutated(texts, 200)], read, _C.ConfigError)


def test_messages_show_bytes_that_are_no_text(tmp_path):
    text = b'{"a": "\xff"}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(_C.CheckpointError, match=r"not valid JSON.*\\xff"):
        _C.load_parameters(str(tmp_path), dmamba.nn.DMamba(3, 2).cpp_module)


def test_mutated_checkpoints(seeds, tmp_path):
    path = tmp_path / "input.cpt"

    def read(content):
        path.write_bytes(content)
        dmamba.from_official(path)

    inputs = [*seeds["cpt"], *mutated(seeds["cpt"], 200, mutations.mutate_archive)]
    try_all(inputs, read, (_C.CheckpointError, _C.ConfigError))


def test_mutated_metadata(seeds, tmp_path):
    def read(content):
        (tmp_path / "metadata.json").write_bytes(content)
        metadata = minari_folders.read_metadata(tmp_path)
        minari_folders.check_spaces(metadata, "input")
        minari_folders.facts(metadata)

    try_all([*seeds["metadata"], *mutated(seeds["metadata"], 400)], read, _C.DataError)


def test_mutated_pretrained_models(tmp_path):
    folder = tmp_path / "model"
    dmamba.nn.DMamba(3, 2, d_model=8, n_layer=1, max_timestep=8).save_pretrained(folder)
    parts = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    generator = random.Random(5)

    def read(number):
        for name, content in parts.items():
            changed = name == ("config.json", "model.safetensors")[number % 2] and number
            content = mutations.mutate(content, generator) if changed else content
            (folder / name).write_bytes(content)
        dmamba.nn.DMamba.from_pretrained(folder)

    try_all(range(120), read, (_C.CheckpointError, _C.ConfigError))


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_what_campaigns_found(path, tmp_path):
    """Each file brought a reader down once; its name begins with the reader's."""
    kind = path.name.partition("-")[0]
    if kind == "converted":
        target = tmp_path / "input.h5"
        shutil.copy(path, target)
        read = lambda: _C.open_replay(str(target)).frames.sum()  # noqa: E731
    else:
        read = lambda: _C.open_dataset(str(path))  # noqa: E731
    with pytest.raises(_C.DataError, match="damaged|must|needs|cannot|not|has"):
        read()


def made(path: Path, **replaced) -> Path:
    """A file of D4RL's layout; a dataset is replaced by what is given."""
    with h5py.File(path, "w") as file:
        for name, values in (make_corpora.d4rl_arrays() | replaced).items():
            if callable(values):
                values(file, name)
            else:
                file[name] = values
    return path


def test_no_link_leads_into_another_file(tmp_path):
    secret = made(tmp_path / "secret.hdf5")

    def link(file, name):
        file[name] = h5py.ExternalLink(str(secret), f"/{name}")

    with pytest.raises(_C.DataError, match="dataset 'rewards' cannot be opened"):
        _C.open_dataset(str(made(tmp_path / "link.hdf5", rewards=link)))

    def chained(file, name):
        file["elsewhere"] = h5py.ExternalLink(str(secret), "/")
        file[name] = h5py.SoftLink(f"/elsewhere/{name}")

    with pytest.raises(_C.DataError, match="dataset 'rewards' cannot be opened"):
        _C.open_dataset(str(made(tmp_path / "chain.hdf5", rewards=chained)))


def test_no_data_lie_in_another_file(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4096))

    def outside(file, name):
        pieces = [(str(tmp_path / "secret"), 0, 4096)]
        file.create_dataset(name, (make_corpora.ROWS,), np.float32, external=pieces)

    with pytest.raises(_C.DataError, match="keeps its data in other files"):
        _C.open_dataset(str(made(tmp_path / "outside.hdf5", rewards=outside)))


def test_filters_that_are_not_read(tmp_path):
    def packed(file, name):
        values = make_corpora.d4rl_arrays()[name]
        file.create_dataset(name, data=values, scaleoffset=3, chunks=True)

    with pytest.raises(_C.DataError, match="packed with the filter 6 'scaleoffset'; only gzip"):
        _C.open_dataset(str(made(tmp_path / "packed.hdf5", rewards=packed)))


def test_a_header_that_claims_2_to_the_60_rows(tmp_path):
    def huge(file, name):
        file.create_dataset(name, (2**60,), np.float32, chunks=(1024,), fillvalue=1.0)
        file[name][0] = 1.0

    with pytest.raises(_C.DataError, match="must have the same|not written to its end|differ|rows"):
        _C.open_dataset(str(made(tmp_path / "huge.hdf5", rewards=huge)))
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }\n"
    for name, values in zip(make_corpora.FIELDS, make_corpora.shard(), strict=True):
        with gzip.open(tmp_path / f"$store$_{name}_ckpt.0.gz", "wb") as file:
            np.save(file, values)
    with gzip.open(tmp_path / "$store$_reward_ckpt.0.gz", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(_C.DataError, match="claims 1152921504606846976 rows"):
        _C.open_replay(str(tmp_path))


def test_a_checked_file_is_remembered_until_it_changes(tmp_path):
    path = made(tmp_path / "a.hdf5")
    for _ in range(2):
        _C.open_dataset(str(path), "d4rl")
    assert len(remembered()) == 1
    os.utime(path, ns=(1, 1))
    _C.open_dataset(str(path), "d4rl")
    assert len(remembered()) == 2
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(_C.DataError, match="truncated"):
        _C.open_dataset(str(path), "d4rl")
    assert len(remembered()) == 2


def test_files_that_are_trusted_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("DMAMBA_TRUST_FILES", "1")
    _C.open_dataset(str(made(tmp_path / "a.hdf5")))
    assert remembered() == []


def test_whoever_cannot_remember_checks_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    path = made(tmp_path / "a.hdf5")
    assert _C.open_dataset(str(path)).num_transitions > 0
    monkeypatch.delenv("HOME")
    assert _C.open_dataset(str(path)).num_transitions > 0


def test_a_checker_that_is_killed_is_an_error(tmp_path):
    """A file too large for the memory that the checking process may have."""
    path = made(tmp_path / "a.hdf5")
    code = (
        "import resource, dmamba\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n"  # inherited
        "import os, signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # its end cannot be asked for
        f"print(dmamba._C.open_dataset({str(path)!r}).num_transitions)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_nothing(tmp_path, zipped):
    evil = tmp_path / "evil"
    path = tmp_path / "model.cpt"
    torch.save({"a": _Runs(str(evil))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(_C.CheckpointError, match=r"not a checkpoint of torch.save|Weights only"):
        dmamba.from_official(path)
    path.write_bytes(pickle.dumps(_Runs(str(evil))))
    with pytest.raises(_C.CheckpointError):
        dmamba.from_official(path)
    assert not evil.exists()


def test_an_archive_writes_nothing(tmp_path):
    """torch.load once unpacked tar archives; neither kind may write anywhere."""
    path = tmp_path / "in" / "model.cpt"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../out", str(tmp_path / "out")):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    with pytest.raises(_C.CheckpointError):
        dmamba.from_official(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("../out", b"x")
    with pytest.raises(_C.CheckpointError):
        dmamba.from_official(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "model.cpt"]


def test_a_checkpoint_larger_than_its_file(tmp_path):
    path = tmp_path / "bomb.cpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(_C.CheckpointError, match="is compressed, which torch.save never does"):
        dmamba.from_official(path)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"total_episodes": 1, "total_steps": 1, "observation_space": '
        + '"'
        + "[" * 100_000
        + '"}',
        '{"total_episodes": 1, "total_steps": 1, "observation_space": "{\\"type\\": \\"Dict\\"}"}',
        '{"total_episodes": 1, "total_steps": 1, "observation_space": '
        '"{\\"type\\": \\"Box\\", \\"shape\\": 3}"}',
        '{"total_episodes": 1, "total_steps": 1, "action_space": '
        '"{\\"type\\": \\"Tuple\\", \\"subspaces\\": [1]}"}',
    ],
)
def test_metadata_that_nests_or_lies(tmp_path, content):
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(_C.DataError, match=r"cannot be read|is damaged"):
        minari_folders.check_spaces(minari_folders.read_metadata(tmp_path), "x")


def test_metadata_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    spec = '{"id": "A-v0", "entry_point": "stranger.envs:A", "kwargs": {"a": 1}}'
    assert minari_folders.facts({"env_spec": spec})["environment"] == "stranger:A-v0?a=1"


def test_metadata_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    spec = '{"id": "Hopper-v5", "kwargs": {"a": 1}}'
    assert minari_folders.facts({"env_spec": spec})["environment"] == "Hopper-v5?a=1"


def test_a_state_that_nests(tmp_path):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "state.json").write_text(
        '{"format": 1, "contexts": {"note": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}}"
    )
    with pytest.raises(_C.CheckpointError, match="nested too deep"):
        _C.read_checkpoint(str(folder))
    (folder / "state.json").unlink()
    (tmp_path / "summary.json").write_text("[" * 100_000)
    with pytest.raises(_C.DataError, match="damaged, not JSON"):
        dmamba.Run(tmp_path).summary()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", "a/b", ".hidden"])
def test_a_configuration_writes_nowhere_else(name):
    with pytest.raises(_C.ConfigError, match="name"):
        _C.Config.parse(f"name: {name}\n")


def test_a_name_is_no_path_to_download_to():
    for name in ("a/../../b-v0", "../x/y-v1", "/etc/x-v0"):
        assert not minari_folders.is_remote_id(name)
        with pytest.raises(_C.DataError, match="not found"):
            data.load(name)
