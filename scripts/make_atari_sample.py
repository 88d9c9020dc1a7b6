#!/usr/bin/env python3
r"""Makes a small recording of whole games, chosen by return from one in the DQN-replay layout.

The games whose sum of clipped rewards is at least --least are kept, in their order, as one shard.
The same source gives the same bytes. `sample.json` says where the games come from. The bundled
sample:

    python scripts/make_atari_sample.py --source Breakout --buffers 2 --least 38 \
        --output data/samples/Breakout --max-bytes 3000000 \
        --note "PPO policies of this project, actions drawn at temperature 1, no sticky actions"
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import data
from dmamba.common.files import write_json
from dmamba.data.replay_files import Game, write_shards


def choose(store: Any, least: float) -> list[int]:
    """Indices of the games with a clipped return of at least `least`."""
    return [int(i) for i in np.flatnonzero(store.episode_returns >= least)]


def copy_game(store: Any, index: int) -> Game:
    """One game of a FrameStore, to be written again."""
    end = int(store.episode_ends[index])
    game = Game()
    for row in range(end - int(store.episode_lengths[index]), end):
        game.add(store.frames[row], store.actions[row], store.rewards[row])
    game.close()
    return game


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the recording")
    parser.add_argument("--buffers", type=int, default=0, help="the last so many shards (all)")
    parser.add_argument("--least", type=float, required=True, help="clipped return of a game")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, named <Game>")
    parser.add_argument("--max-bytes", type=int, default=3_000_000)
    parser.add_argument("--note", default="", help="on who played")
    args = parser.parse_args()

    store = data.load(args.source, buffers=args.buffers, cache="memory")
    kept = choose(store, args.least)
    if not kept:
        raise SystemExit(f"{args.source}: no game has a return of {args.least:g}")
    temporary = args.output.with_name(args.output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shards = write_shards(temporary / "1", [copy_game(store, index) for index in kept])
    size = sum(file.stat().st_size for file in temporary.rglob("*.gz"))
    if size > args.max_bytes:
        raise SystemExit(f"{size} bytes, more than --max-bytes {args.max_bytes}; raise --least")
    write_json(
        temporary / "sample.json",
        {
            "note": f"the {len(kept)} games of {store.num_episodes} with a clipped return of at "
            f"least {args.least:g}",
            "policy": args.note,
            "source": args.source.name,
            "shards": store.metadata["shards"],
            "games": kept,
            "clipped_returns": store.episode_returns[kept],
        },
    )
    shutil.rmtree(args.output, ignore_errors=True)
    temporary.rename(args.output)
    rows = sum(shard["rows"] for shard in shards)
    print(f"{args.output}: {len(kept)} games, {rows} rows, {size} bytes")


if __name__ == "__main__":
    main()
