"""Profiles of id traces, and traces from profiles.

python -m models.inputs profile|generate --help
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.rng import stream
from models.embedding.offsets import Int64Array
from models.inputs.stack_distance import generate, locality_of, read_locality, write_locality

MOST_ID = 2**62


def read_ids(path: Path) -> Int64Array:
    """Ids of a trace: a .npy file of whole numbers, or text without header.

    Text has blanks, commas or line ends between. Raises ValueError naming the file and the line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a trace of ids")
    return _read_array(path) if path.suffix == ".npy" else _read_text(path)


def _read_array(path: Path) -> Int64Array:
    try:
        ids = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path}: not readable: {error}") from error
    whole = np.issubdtype(ids.dtype, np.integer) and ids.size > 0
    if not whole or ids.min() < 0 or ids.max() > MOST_ID:
        raise ValueError(
            f"{path}: holds {ids.size} of {ids.dtype}; expected whole numbers from 0 to {MOST_ID}"
        )
    return np.asarray(ids.reshape(-1), np.int64)


def _read_text(path: Path) -> Int64Array:
    text = path.read_text(errors="replace").replace(",", " ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            ids = np.fromstring(text, dtype=np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            ids = np.array([-1])
    if len(ids) == 0:
        raise ValueError(f"{path}: is empty; expected ids")
    if ids.min() < 0 or ids.max() > MOST_ID:
        raise ValueError(
            f"{path}, {_first_wrong(text)}; expected numbers from 0 to {MOST_ID} and no header"
        )
    return ids


def _first_wrong(text: str) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        for word in line.split():
            if not (word.isascii() and word.isdecimal() and int(word) <= MOST_ID):
                return f"line {number}: {word!r} is no id"
    return "somewhere: no ids"


def write_ids(path: Path, ids: Int64Array, bag_ids: int) -> None:
    """A .npy file, or text with a bag of `bag_ids` ids a line."""
    if path.suffix == ".npy":
        np.save(path, ids)
    else:
        np.savetxt(path, ids.reshape(-1, bag_ids), fmt="%d")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="models.inputs", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("profile", help="LRU stack distances of a trace of ids").add_argument
    add("--profile_trace_file", type=Path, required=True, help="ids of one table in order of use")
    add("--max_stack_distance", type=int, help="accesses deeper than that count as first ones")
    add("--sd_file_cumm", type=Path, required=True, help="gets the profile with cumulative shares")
    add("--sd_file", type=Path, help="gets the profile with each distance's own share")
    add = commands.add_parser("generate", help="ids with a profile's stack distances").add_argument
    add("--sd_file_cumm", type=Path, required=True, help="profile, as `profile` writes it")
    add("--trace_file", type=Path, required=True, help="gets the ids, a bag a line (.npy: all)")
    add("--table_size", type=int, required=True, help="rows of the table")
    add("--num_batches", type=int, default=1)
    add("--mini_batch_size", type=int, default=1, help="bags of a batch")
    add("--pooling_factor", type=int, default=1, help="ids of a bag")
    add("--data_trace_enable_padding", action="store_true")
    add("--numpy_rand_seed", type=int, default=123)
    return parser


def _profile(args: argparse.Namespace) -> None:
    if args.max_stack_distance is not None and args.max_stack_distance < 1:
        raise ValueError(f"--max_stack_distance is {args.max_stack_distance}; expected at least 1")
    ids = read_ids(args.profile_trace_file)
    locality = locality_of(ids, args.max_stack_distance)
    write_locality(args.sd_file_cumm, locality)
    if args.sd_file is not None:
        write_locality(args.sd_file, locality, cumulative=False)
    print(f"{len(ids)} accesses, {len(locality.first_ids)} ids, {len(locality.distance)} distances")
    rows = np.unique(np.geomspace(1, max(len(locality.first_ids), 1), 8).astype(int))
    rates = zip(rows, locality.hit_rate(rows), strict=True)
    print("LRU cache of rows: " + ", ".join(f"{n}: {rate:.1%}" for n, rate in rates))


def _generate(args: argparse.Namespace) -> None:
    for name in ("table_size", "num_batches", "mini_batch_size", "pooling_factor"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected at least 1")
    n = args.num_batches * args.mini_batch_size * args.pooling_factor
    rng = stream(args.numpy_rand_seed, "trace")
    locality = read_locality(args.sd_file_cumm)
    ids = generate(locality, args.table_size, n, rng, padding=args.data_trace_enable_padding)
    write_ids(args.trace_file, ids, args.pooling_factor)
    print(f"{n} ids, {len(np.unique(ids))} different, in {args.trace_file}")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        (_profile if args.command == "profile" else _generate)(args)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"models.inputs {args.command}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
