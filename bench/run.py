"""`python -m bench`: measures Celeriac beside its peers, engine by engine, and prints a table for each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from . import raw
from .engines import ENGINES, SERVERS, Engine
from .figures import FIGURES, FULL, QUICK, Numbers, Sizes
from .report import report
from .servers import Server, Unavailable
from .sides import HOME, SIDES, BenchError, Place, Side, Site, fresh

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FLEETING = 2
"""How many times a measurement is tried before it counts as failed: a busy machine may starve a worker for once."""


def main(argv: list[str] | None = None) -> int:
    """0 when something could be measured, whatever the figures are."""
    options = arguments(argv)
    sizes = QUICK if options.quick else FULL
    for number in INTERRUPTIONS:
        signal.signal(number, _interrupt)
    HOME.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=HOME))
    begun = time.monotonic()
    results: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rounds": options.rounds,
        "load_average": [round(os.getloadavg()[0], 2)],
        "engines": {},
    }
    try:
        for name in options.engine:
            measured = Run(name, options, sizes, directory / name, begun).measured(results["load_average"])
            if measured is not None:
                results["engines"][name] = measured
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started has been stopped.", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    results["seconds"] = round(time.monotonic() - begun)
    if not results["engines"]:
        print("Nothing could be measured.", file=sys.stderr)
        return 1
    print(report(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


ABOUT = """\
Celeriac beside its peers, on the same servers and in the same run: one table for each engine, with what is aimed at and what was reached.
Without arguments everything is measured once, which takes about twenty minutes. Progress goes to stderr, tables to stdout.
The servers (Redis, PostgreSQL, RabbitMQ) are started on free ports for the time of the run; each peer gets a virtual environment below .bench at
the first run. What is missing is named in one line and left out."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    epilog = ["engines:"]
    epilog += [f"  {name:<12}{', '.join(engine.sides)}" for name, engine in ENGINES.items()]
    epilog += ["figures:"]
    epilog += [f"  {name:<12}{figure.about}" for name, figure in FIGURES.items()]
    epilog += [
        "examples:",
        "  python -m bench --engine redis --quick                                a rough look, in about a minute",
        "  python -m bench --engine redis --only throughput --rounds 3           the medians of three rounds",
        "  python -m bench --engine redis --sides celeriac,huey --only latency   two sides alone",
        "  python -m bench --json figures.json                                   every single measurement too",
    ]
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=ABOUT, epilog="\n".join(epilog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine", type=_names(list(ENGINES)), default=list(ENGINES), metavar="LIST", help="some of the engines; default: all"
    )
    parser.add_argument(
        "--only", type=_names(list(FIGURES)), metavar="LIST", help="some of the figures; default: those that matter for the engine"
    )
    parser.add_argument(
        "--sides", type=_names(list(SIDES)), default=list(SIDES), metavar="LIST", help="some of the sides; default: all of the engine"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often all is measured; the tables show medians. Default: 1")
    parser.add_argument("--quick", action="store_true", help="less of everything: rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there, too")
    return parser.parse_args(argv)


class Run:
    """The measurements on one engine."""

    def __init__(self, name: str, options: argparse.Namespace, sizes: Sizes, directory: Path, begun: float) -> None:
        self.engine: Engine = ENGINES[name]
        self.rounds: int = options.rounds
        self.sizes = sizes
        self.directory = directory
        self.begun = begun
        self.only: list[str] = options.only or list(self.engine.figures)
        self.wanted = [side for side in self.engine.sides if side in options.sides]
        self.notes: list[str] = []
        self.found: dict[str, list[Numbers]] = {"raw": []}

    def measured(self, loads: list[float]) -> dict[str, Any] | None:
        """Round by round, each figure on each side; who goes first alternates. None when there was nothing to measure."""
        self.directory.mkdir()
        with contextlib.ExitStack() as stack:
            running = self._servers(stack)
            sides = list(self._sides(running))
            if not sides:
                return None
            places = {side.name: self.engine.place(side.name, running) for side in sides}
            stored = raw.Stored()
            for number in range(self.rounds):
                for name in self.only:
                    for side in sides if number % 2 == 0 else sides[::-1]:
                        self._measure(name, number, side, places[side.name])
                if "celeriac" in places:
                    if number == 0:
                        stored = self._stored(sides[0], places["celeriac"])
                    self._raw(places["celeriac"], number, stored)
                loads.append(round(os.getloadavg()[0], 2))
            return {
                "sides": [side.name for side in sides],
                "titles": {side.name: f"{side.title} {side.version}" for side in sides},
                "places": list(dict.fromkeys(place.title for place in places.values())),
                "notes": self.notes,
                "stored_bytes": {"message": stored.message, "record": stored.record},
                "medians": {name: medians(numbers) for name, numbers in self.found.items()},
                "measurements": self.found,
            }

    def _servers(self, stack: contextlib.ExitStack) -> dict[str, Server]:
        running: dict[str, Server] = {}
        for name in self.engine.servers(self.wanted):
            try:
                running[name] = stack.enter_context(SERVERS[name](self.directory / name))
            except Unavailable as problem:
                self._note(f"Left out what needs {name}: {problem}")
        return running

    def _sides(self, running: dict[str, Server]) -> Iterator[Side]:
        for name in self.wanted:
            if any(server not in running for server in self.engine.servers([name])):
                continue
            try:
                yield SIDES[name].ready(self._say)
            except (Unavailable, BenchError) as problem:
                self._note(f"Left out {SIDES[name].title}: {problem}")

    def _measure(self, name: str, number: int, side: Side, place: Place) -> None:
        figure = FIGURES[name]
        directory = self.directory / side.name
        site = Site(side, place, directory, {})
        if not figure.fits(site) or (figure.once and number > 0):
            return
        label = f"{self.engine.title:<11}round {number + 1}/{self.rounds}  {name:<11}{side.title:<14}"
        for attempt in range(FLEETING):
            try:
                with fresh(side, place, directory, name) as site:
                    numbers = figure.measure(site, self.sizes)
            except Exception as problem:  # whatever one side does, the others are still measured
                if attempt + 1 == FLEETING:
                    self._note(f"{side.title}, {name}: {problem or type(problem).__name__}")
                continue
            self.found.setdefault(side.name, []).append(numbers)
            self._say(label + "  ".join(f"{key}={value:.4g}" for key, value in numbers.items()))
            return

    def _stored(self, side: Side, place: Place) -> raw.Stored:
        """The size of what Celeriac stores for one task, so that the raw limit is measured with the same."""
        try:
            with fresh(side, place, self.directory / "sizes", "sizes") as site, site.worker():
                return raw.Stored(**{name: int(number) for name, number in site.ask("sizes").items()})
        except Exception as problem:
            self._note(f"The size of what is stored could not be measured: {problem}")
            return raw.Stored()

    def _raw(self, place: Place, number: int, stored: raw.Stored) -> None:
        try:
            numbers = self.engine.raw_limits(place, self.only, self.sizes, self.directory / f"raw-{number}", stored)
        except Exception as problem:
            self._note(f"The driver alone: {problem or type(problem).__name__}")
            return
        if numbers:
            self.found["raw"].append(numbers)
            self._say(
                f"{self.engine.title:<11}round {number + 1}/{self.rounds}  driver alone  "
                + "  ".join(f"{key}={value:.4g}" for key, value in numbers.items())
            )

    def _note(self, line: str) -> None:
        lines = line.split("\nThe end of the ")[0].splitlines()
        self.notes.append(lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"[:200])
        self._say(line)

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begun:5.0f} s  {line}", file=sys.stderr, flush=True)


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
