"""What a long run, many open files and a large file do to a process: does it stay bounded?

    python tests/reliability/load.py steps --device cpu       1,000,000 steps of a tiny model
    python tests/reliability/load.py steps --device cuda
    python tests/reliability/load.py steps --steps 20000      a look
    python tests/reliability/load.py handles                  10,000 open/close of each reader
    python tests/reliability/load.py handles --readers d4rl arrays --times 500
    python tests/reliability/load.py large --gigabytes 100    a sparse file, larger than the memory

The exit status is 1 where something grows. Linux alone: it reads /proc/self.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Reads the command line, and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="steps|handles|large")

    steps = commands.add_parser("steps", help="a long training of a tiny model")
    steps.add_argument("--steps", type=int, default=1_000_000)
    steps.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    steps.add_argument("--warm-up", type=int, help="steps before the first sample; default: 5 %%")
    steps.add_argument("--share", type=float, default=0.01, help="by which memory may change")

    handles = commands.add_parser("handles", help="opens and closes datasets")
    handles.add_argument("--times", type=int, default=10_000, help="of each reader")
    handles.add_argument("--readers", nargs="+", metavar="READER", help="default: all")
    handles.add_argument("--share", type=float, default=0.01, help="by which memory may change")

    large = commands.add_parser("large", help="trains on a sparse file larger than the memory")
    large.add_argument("--gigabytes", type=float, default=100.0)
    large.add_argument("--steps", type=int, default=2000)
    large.add_argument("--folder", help="where the file is made; default: a temporary one")
    large.add_argument("--device", choices=("cpu", "cuda"), default="cpu")

    options = parser.parse_args()
    if options.command == "steps":
        import load_steps

        warm_up = options.steps // 20 if options.warm_up is None else options.warm_up
        return load_steps.run(options.steps, options.device, warm_up, options.share)
    if options.command == "handles":
        import load_handles

        return load_handles.run(options.times, options.readers, options.share)
    import load_large

    return load_large.run(options.gigabytes, options.steps, options.folder, options.device)


if __name__ == "__main__":
    sys.exit(main())
