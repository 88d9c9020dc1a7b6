"""Writes the seeds of the harnesses: small files of every kind that the readers take, and of some
that they must refuse.

    python tests/fuzz/make_corpora.py FOLDER

FOLDER gets a folder per harness. h5py writes most of the HDF5 files, other versions of the format
among them; dmamba itself the rest.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

import dmamba
from dmamba import _C
from dmamba.data import hdf5

ROOT = Path(__file__).resolve().parents[2]
ROWS = 6


def d4rl_arrays(rows: int = ROWS) -> dict[str, np.ndarray]:
    """Two episodes and a piece of a third."""
    random = np.random.default_rng(0)
    ends = np.zeros(rows, np.uint8)
    ends[2] = 1
    timeouts = np.zeros(rows, np.uint8)
    timeouts[4] = 1
    return {
        "observations": random.normal(size=(rows, 3)).astype(np.float32),
        "actions": random.normal(size=(rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": ends,
        "timeouts": timeouts,
    }


def d4rl(folder: Path) -> None:
    arrays = d4rl_arrays()
    hdf5.write(folder / "own.hdf5", arrays, {"environment": "Hopper-v4"})
    for version in ("earliest", "v108", "latest"):
        with h5py.File(folder / f"{version}.hdf5", "w", libver=version) as file:
            for name, values in arrays.items():
                file[name] = values.astype(bool) if values.dtype == np.uint8 else values
            file["metadata/name"] = "text"
            file["metadata/number"] = 3
    for name, options in {
        "gzip": {"compression": "gzip", "chunks": True},
        "shuffle": {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": True},
        "szip_free": {"scaleoffset": 3, "chunks": True},
        "lzf": {"compression": "lzf", "chunks": True},
        "chunks": {"chunks": True, "maxshape": None},
    }.items():
        for version in ("earliest", "latest"):
            with h5py.File(folder / f"{name}-{version}.hdf5", "w", libver=version) as file:
                for key, values in arrays.items():
                    chosen = dict(options)
                    if name == "szip_free" and values.dtype != np.float32:
                        chosen = {}
                    if name == "chunks":
                        chosen = {"chunks": tuple(2 for _ in values.shape)}
                        chosen["maxshape"] = tuple(None for _ in values.shape)
                    file.create_dataset(key, data=values, **chosen)
    with h5py.File(folder / "float64.hdf5", "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.astype(np.float64) if values.dtype == np.float32 else values
    with h5py.File(folder / "links.hdf5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("/etc/hostname", "/rewards")
        file["again"] = h5py.SoftLink("/again")
        file["metadata/strings"] = np.array([b"a", b"b"])
        file["metadata/text"] = np.bytes_(b"fixed")
    with h5py.File(folder / "external.hdf5", "w") as file:
        for name, values in arrays.items():
            if name != "rewards":
                file[name] = values
        file.create_dataset(
            "rewards", (ROWS,), np.float32, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
        )
    with h5py.File(folder / "virtual.hdf5", "w", libver="latest") as file:
        for name, values in arrays.items():
            if name != "rewards":
                file[name] = values
        layout = h5py.VirtualLayout(shape=(ROWS,), dtype=np.float32)
        layout[:] = h5py.VirtualSource("/etc/hostname", "rewards", shape=(ROWS,))
        file.create_virtual_dataset("rewards", layout)
    for name in ("d4rl_wide.hdf5",):
        (folder / name).write_bytes((ROOT / "tests/data" / name).read_bytes())


def minari(folder: Path) -> None:
    random = np.random.default_rng(1)
    for name, version, options in (
        ("contiguous", "earliest", {}),
        ("latest", "latest", {}),
        ("gzip", "earliest", {"compression": "gzip"}),
    ):
        with h5py.File(folder / f"{name}.hdf5", "w", libver=version) as file:
            for episode, steps in enumerate((3, 2) if name == "latest" else (3,)):
                group = file.create_group(f"episode_{episode}")
                group.attrs["id"] = episode
                parts = {
                    "actions": random.normal(size=(steps, 2)).astype(np.float32),
                    "rewards": random.normal(size=steps),
                    "terminations": np.arange(steps) == steps - 1,
                    "truncations": np.zeros(steps, bool),
                }
                for key, values in parts.items():
                    group.create_dataset(key, data=values, **options)
                if name == "latest":  # a dictionary and a tuple
                    for key in (
                        "observations/a",
                        "observations/b/_index_0",
                        "observations/b/_index_1",
                    ):
                        group.create_dataset(
                            key, data=random.normal(size=(steps + 1, 2)), **options
                        )
                else:
                    group.create_dataset(
                        "observations", data=random.normal(size=(steps + 1, 3)), **options
                    )


def shard() -> list[np.ndarray]:
    rows = 5
    terminals = np.zeros(rows, np.uint8)
    terminals[3] = 1
    frames = np.zeros((rows, 84, 84), np.uint8)
    frames[3:] = 7  # padding before it
    actions = np.array([0, 0, 0, 2, 1], np.int32)
    return [frames, actions, np.zeros(rows, np.float32), terminals]


FIELDS = ("observation", "action", "reward", "terminal")


def converted(folder: Path) -> None:
    """The program's own, and one of an older version of the format, which has no checksums."""
    with tempfile.TemporaryDirectory() as scratch:
        recording = Path(scratch) / "recording"
        recording.mkdir()
        for field, values in zip(FIELDS, shard(), strict=True):
            with gzip.open(recording / f"$store$_{field}_ckpt.0.gz", "wb") as file:
                np.save(file, values)
        _C.open_replay(str(recording), cache=str(Path(scratch) / "cache"))
        (made,) = (Path(scratch) / "cache").glob("*.h5")
        content = made.read_bytes()
    (folder / "own.h5").write_bytes(content)
    with h5py.File(io.BytesIO(content)) as source:
        for version in ("earliest", "latest"):
            with h5py.File(folder / f"{version}.h5", "w", libver=version) as file:
                for name in source:
                    source.copy(name, file)


def replay(folder: Path) -> None:
    """First byte: which of the four files; 4 more where it is not compressed."""
    for number, values in enumerate(shard()):
        plain = io.BytesIO()
        np.save(plain, values)
        text = plain.getvalue()
        (folder / f"{FIELDS[number]}-npy").write_bytes(bytes([number | 4]) + text)
        for level in (0, 9):
            packed = gzip.compress(text, level, mtime=0)
            (folder / f"{FIELDS[number]}-gz{level}").write_bytes(bytes([number]) + packed)
        halves = gzip.compress(text[:90], mtime=0) + gzip.compress(text[90:], mtime=0) + bytes(9)
        (folder / f"{FIELDS[number]}-members").write_bytes(bytes([number]) + halves)
    for name, kind in (
        ("action", "<i8"),
        ("action", "|u1"),
        ("reward", "<f8"),
        ("terminal", "|b1"),
    ):
        plain = io.BytesIO()
        np.save(plain, shard()[FIELDS.index(name)].astype(kind))
        (folder / f"{name}-{kind[1:]}").write_bytes(
            bytes([FIELDS.index(name) | 4]) + plain.getvalue()
        )


def yaml(folder: Path) -> None:
    for number, path in enumerate(sorted((ROOT / "configs").glob("experiment/**/*.yaml"))):
        text = "\n".join(line for line in path.read_text().splitlines() if "base:" not in line)
        (folder / f"{number}.yaml").write_text(text + "\n")
    (folder / "laughs.yaml").write_text(
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in zip("abcde", "bcdef", strict=True))
    )
    (folder / "deep.yaml").write_text("model: " + "[" * 30 + "]" * 30 + "\n")
    (folder / "numbers.yaml").write_text(
        "training:\n  steps: 99999999999999999999\n  learning_rate: 1e-400\n"
    )
    (folder / "override").write_text("=training.steps=[1, 2]")
    (folder / "flow.yaml").write_text("{model: {d_model: 64, n_layer: !int 3}, seed: '1'}\n")
    (folder / "all.yaml").write_text(dmamba.Config().to_yaml())


def safetensors(folder: Path) -> None:
    def write(name: str, header: dict | str, data: bytes = b"") -> None:
        text = header if isinstance(header, str) else json.dumps(header)
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)

    def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    good = {"a": entry("F32", [2, 2], 0, 16), "b": entry("BOOL", [3], 16, 19)}
    write("good", {"__metadata__": {"format": "pt"}, **good}, bytes(19))
    write(
        "all", {d: entry(d, [0], 0, 0) for d in ("F64", "I64", "F32", "I32", "F16", "BF16", "U8")}
    )
    write("huge", {"a": entry("F32", [2**60, 2**60], 0, 16)}, bytes(16))
    write("overlap", {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6))
    write("twice", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', bytes(1))
    write("deep", '{"a":' + "[" * 50 + "]" * 50 + "}")


def checkpoints(folder: Path) -> None:
    """Files as torch.save writes them: tiny models under the author's names, in his two forms."""
    sizes = {"d_model": 4, "n_layer": 1, "d_state": 2, "d_conv": 2, "dt_rank": 1, "expand": 1}
    for mixing in ("none", "mlp"):
        model = dmamba.nn.DMamba(
            2, 2, **sizes, channel_mixing=mixing, context_length=20, max_timestep=4, padding="paper"
        )
        tensors = {name: value.detach() for name, value in model.named_parameters()}
        torch.save(tensors, folder / f"{mixing}.cpt")
    torch.save({"state_dict": tensors, "step": 3}, folder / "wrapped.cpt")
    torch.save(tensors, folder / "old.cpt", _use_new_zipfile_serialization=False)
    saved = torch.load(ROOT / "tests/data/official/official_atari.cpt", weights_only=True)
    names = ("pos_emb", "global_pos_emb", "head.weight", "blocks.0.mamba.A_log", "tok_emb.weight")
    corner = {
        name: value[tuple(slice(0, 4) for _ in value.shape)].clone()
        for name, value in saved.items()
        if name in names
    }
    torch.save(corner, folder / "atari.cpt")
    views = {"a": torch.zeros(2, 2)[:, :1], "b": torch.ones(3).half()}
    torch.save(views, folder / "views.cpt")


def minari_metadata(folder: Path) -> None:
    vector = json.dumps({"type": "Box", "dtype": "float32", "shape": [3], "low": [0], "high": [1]})
    nested = json.dumps(
        {"type": "Dict", "subspaces": {"a": {"type": "Tuple", "subspaces": [json.loads(vector)]}}}
    )
    spec = json.dumps(
        {"id": "Hopper-v5", "entry_point": "gymnasium.envs:Hopper", "kwargs": {"a": 1}}
    )
    for name, space in (("vector", vector), ("nested", nested)):
        content = {
            "total_episodes": 2,
            "total_steps": 5,
            "data_format": "hdf5",
            "observation_space": space,
            "action_space": vector,
            "env_spec": spec,
            "dataset_id": "mujoco/hopper/medium-v0",
            "algorithm_name": "SAC",
            "minari_version": "0.5.3",
        }
        (folder / f"{name}.json").write_text(json.dumps(content))


WRITERS = {
    "d4rl": d4rl,
    "minari": minari,
    "converted": converted,
    "replay": replay,
    "yaml": yaml,
    "safetensors": safetensors,
    "cpt": checkpoints,
    "metadata": minari_metadata,
}


def main() -> None:
    """Writes them all, and says how many and how large."""
    for name, write in WRITERS.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        sizes = [file.stat().st_size for file in folder.iterdir()]
        print(f"{name:14}{len(sizes):4} files, at most {max(sizes)} bytes")


if __name__ == "__main__":
    main()
