"""`python bench/run.py [--only throughput,delay,…] [--quick] [--json FILE]`: measures both sides and the raw limit, and prints one table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = "bench"

from bench import raw_sqlite
from bench.figures import FIGURES, FULL, ONCE, QUICK, Numbers, Sizes
from bench.report import table
from bench.sides import HOME, BenchError, Side, celeriac, celery, redis_server

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

DEFAULT_BYTES = {"message": 220, "record": 160}
"""Of one message and one record of `add(2, 2)`; measured instead where the worker can be asked."""


def main(argv: list[str] | None = None) -> int:
    """0 when everything could be measured, whatever the figures are."""
    options = arguments(argv)
    sizes = QUICK if options.quick else FULL
    for number in INTERRUPTIONS:
        signal.signal(number, _interrupt)
    HOME.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=HOME))
    try:
        with contextlib.ExitStack() as stack:
            sides = []
            if "celeriac" in options.sides:
                sides.append(celeriac())
            if "celery" in options.sides:
                sides.append(celery(stack.enter_context(redis_server(directory / "redis"))))
            results = measure(
                sides, options.only, sizes, directory, rounds=1 if set(options.only) <= ONCE else options.rounds or sizes.rounds
            )
    except BenchError as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started has been stopped.", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Celeriac on SQLite beside Celery 5.7 on Redis and the raw sqlite3 limit.")
    parser.add_argument("--only", type=_names(list(FIGURES)), default=list(FIGURES), metavar="LIST", help=f"some of {','.join(FIGURES)}")
    parser.add_argument(
        "--sides", type=_names(["celeriac", "celery"]), default=["celeriac", "celery"], metavar="LIST", help="celeriac,celery"
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each: a minute or two, rough figures")
    parser.add_argument("--rounds", type=int, help="instead of 3 (1 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single measurement")
    return parser.parse_args(argv)


def measure(sides: list[Side], only: list[str], sizes: Sizes, directory: Path, *, rounds: int) -> dict[str, object]:
    """Round by round, each figure on each side; who goes first alternates."""
    found: dict[str, list[Numbers]] = {name: [] for name in [*(side.name for side in sides), "raw"]}
    loads = [os.getloadavg()[0]]
    begun = time.monotonic()
    stored = dict(DEFAULT_BYTES)
    for round_number in range(rounds):
        order = sides if round_number % 2 == 0 else sides[::-1]
        for name in only:
            if name in ONCE and round_number > 0:
                continue
            for figure in FIGURES[name]:
                for side in order:
                    print(
                        f"  {time.monotonic() - begun:5.0f} s  round {round_number + 1}/{rounds}  {figure.__name__:<11}{side.title}",
                        end="",
                        flush=True,
                    )
                    with side.fresh(directory / side.name) as site:
                        numbers = figure(site, sizes)
                    found[side.name].append(numbers)
                    print("   " + "  ".join(f"{key}={value:.4g}" for key, value in numbers.items()), flush=True)
        if round_number == 0:
            stored |= stored_bytes(sides, directory)
        found["raw"].append(raw_limit(only, sizes, directory / "raw", stored))
        loads.append(os.getloadavg()[0])
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "rounds": rounds,
        "load_average": [round(load, 2) for load in loads],
        "seconds": round(time.monotonic() - begun),
        "stored_bytes": stored,
        "medians": {name: medians(all_numbers) for name, all_numbers in found.items()},
        "measurements": found,
    }


def stored_bytes(sides: list[Side], directory: Path) -> dict[str, int]:
    """The size of what Celeriac stores for one task, so that the raw limit is measured with the same."""
    for side in sides:
        if side.name == "celeriac":
            with side.fresh(directory / side.name) as site, site.worker():
                return {name: int(number) for name, number in site.ask("sizes").items()}
    return {}


def raw_limit(only: list[str], sizes: Sizes, directory: Path, stored: dict[str, int]) -> Numbers:
    """The raw limit, for those figures that have one."""
    numbers: Numbers = {}
    directory.mkdir()
    try:
        if "throughput" in only:
            numbers["drain_per_s"] = raw_sqlite.drain_rate(
                directory, message_bytes=stored["message"], record_bytes=stored["record"], count=sizes.raw_rows
            )
        if "delay" in only:
            numbers["delay_us"] = raw_sqlite.insert_commit_us(directory, message_bytes=stored["message"], count=sizes.delays)
    finally:
        shutil.rmtree(directory)
    return numbers


def medians(measurements: list[Numbers]) -> Numbers:
    """The median of each number over the rounds that have it."""
    names = dict.fromkeys(name for numbers in measurements for name in numbers)
    return {name: statistics.median(numbers[name] for numbers in measurements if name in numbers) for name in names}


def _names(known: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown '{name}'; there are {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in INTERRUPTIONS:  # a second one must not interrupt the cleaning up
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
