"""How a beat does with many entries: `python -m bench.schedules [--broker URL] [--entries 50000] [--seconds 60]`.

    start   from the start of the program to the first occurrence, with all entries stored and one of them due
    idle    processor time while nothing is due
    busy    all entries every 50 s, spread evenly (50,000 entries: 1,000 a second): how late they are, memory, processor time

The messages are not run: what is measured is the beat and its engine. The ledger is the witness.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from celeriac import Celeriac
from celeriac.contracts.schedules import Entry, Planning

PROJECT = """
import json, os
from celeriac import Celeriac
app = Celeriac("bench", **json.loads(os.environ["BENCH_SETTINGS"]))

@app.task(ignore_result=True)
def job(): ...
"""
EVERY_SECONDS = 50
LEAD_SECONDS = 10.0
"""From the start of the beat to the first busy second."""


class Beat:
    """A beat that runs, seen from outside."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.started_at = time.time()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "celeriac", "-A", "proj", "-q", "beat"],
            cwd=folder,
            env={**os.environ, "BENCH_SETTINGS": json.dumps(settings)},
        )

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_percent(self, seconds: float) -> float:
        before, begun = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return 100 * (self.cpu_seconds() - before) / (time.monotonic() - begun)

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self._popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(20)
        finally:
            self._popen.kill()


def put(app: Celeriac, entries: int, make: Callable[[int], Planning]) -> float:
    begun = time.monotonic()
    for start in range(0, entries, 1000):
        app.schedule_store.put([make(number) for number in range(start, min(entries, start + 1000))])
    return time.monotonic() - begun


def wait(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit("the beat does not begin")
        time.sleep(0.02)
    return value


def measure(settings: dict[str, Any], folder: Path, entries: int, seconds: float) -> dict[str, Any]:
    app = Celeriac("bench", set_as_current=False, **settings)
    store = app.schedule_store
    now = store.now()
    figures: dict[str, Any] = {"engine": app.broker.capabilities.engine, "entries": entries}

    def far(number: int) -> Planning:
        return Planning(entry=Entry(name=f"e{number}", schedule="86400", task="proj.job"), planned_at=now + 86400, due_at=now + 86400)

    figures["put_seconds"] = put(app, entries, far)
    store.put([Planning(entry=Entry(name="first", schedule="86400", task="proj.job"), planned_at=now, due_at=now)])
    beat = Beat(folder, settings)
    try:
        (line,) = wait(lambda: store.history("first"))
        figures["first_tick_seconds"] = line.fired_at - beat.started_at
        time.sleep(2)
        figures["idle_cpu_percent"] = beat.cpu_percent(20)
        figures["idle_peak_mb"] = beat.peak_mb()
    finally:
        beat.stop()

    for start in range(0, entries, 1000):
        store.remove([f"e{number}" for number in range(start, start + 1000)])
    begin = store.now() + LEAD_SECONDS + 2 * figures["put_seconds"]

    def spread(number: int) -> Planning:
        at = begin + EVERY_SECONDS * number / entries
        return Planning(entry=Entry(name=f"e{number}", schedule=str(EVERY_SECONDS), task="proj.job"), planned_at=at, due_at=at)

    put(app, entries, spread)
    begin = max(begin, store.now())
    beat = Beat(folder, settings)
    try:
        time.sleep(max(0.0, begin - store.now()))
        figures["busy_cpu_percent"] = beat.cpu_percent(seconds)
        figures["busy_peak_mb"] = beat.peak_mb()
    finally:
        beat.stop()
    end = store.now() - 1
    lines = [line for line in store.history(limit=10_000_000) if begin <= line.planned_at < end and line.outcome == "sent"]
    late = sorted(line.late_seconds for line in lines)
    figures |= {
        "due_a_second": len(lines) / (end - begin),
        "late_p50_ms": 1000 * late[len(late) // 2],
        "late_p99_ms": 1000 * late[len(late) * 99 // 100],
        "late_max_ms": 1000 * late[-1],
    }
    app.broker.purge(["celery"])
    app.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", help="an engine's URL; default: an SQLite file of its own")
    parser.add_argument("--options", default="{}", help="broker_transport_options, as JSON")
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "proj.py").write_text(PROJECT)
        settings = {"broker_url": given.broker or f"sqlite:///{folder / 'bench.db'}", "broker_transport_options": json.loads(given.options)}
        with suppress(KeyboardInterrupt):
            for key, value in measure(settings, folder, given.entries, given.seconds).items():
                print(f"{key:20} {value:.2f}" if isinstance(value, float) else f"{key:20} {value}")


if __name__ == "__main__":
    main()
