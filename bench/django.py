"""Django's own tasks on PostgreSQL, Celeriac beside django-tasks-db, the database backend of django-tasks: `python -m bench.django [--rounds 3] [--quick]`.

    drain    tasks/s of two processes that empty a full queue
    cpu      µs of CPU that a task costs while the queue is emptied, in the worker and in the server: what a busy machine leaves standing
    call     µs of one `enqueue()`
    start    ms from `enqueue()` to the first line of the task, on an idle worker

Both sides use `django.tasks`' interface, the same Django, the same server, and take turns. django-tasks-db keeps its default of looking once a second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from . import servers
from .figures import FULL, QUICK, Numbers, latency, throughput
from .sides import Place, Side, fresh

COMMON = (("BENCH_SIDE", "django_site"), ("DJANGO_SETTINGS_MODULE", "bench.peers.django_settings"))
OURS = Side(
    name="celeriac",
    title="Celeriac",
    worker=("django", "celeriac", "worker", "-c", "2", "-l", "WARNING"),
    prepare=("django", "migrate", "-v", "0"),
    environment=(*COMMON, ("BENCH_DJANGO", "celeriac")),
)
THEIRS = Side(
    name="django-tasks-db",
    title="django-tasks-db",
    packages=("django-tasks-db[compat]", "psycopg[binary]"),
    worker=("django", "db_worker", "-v", "0"),
    workers=2,
    prepare=("django", "migrate", "-v", "0"),
    environment=(*COMMON, ("BENCH_DJANGO", "django-tasks-db")),
)
WANTED = {
    "drain_per_s": "tasks/s",
    "drain_worker_us": "µs of the worker's CPU",
    "drain_server_us": "µs of the server's CPU",
    "call_p50_us": "µs a call",
    "start_p50_ms": "ms to the start, p50",
    "start_p99_ms": "ms to the start, p99",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    sides = [(OURS, 10_000 if options.quick else 30_000, sizes.latencies), (THEIRS, 1_500 if options.quick else 3_000, 10)]
    found: dict[str, list[Numbers]] = {side.name: [] for side, _, _ in sides}
    with tempfile.TemporaryDirectory() as directory, servers.postgresql(Path(directory) / "postgresql") as server:
        place = Place("PostgreSQL", server)
        same = replace(THEIRS, packages=(*THEIRS.packages, f"Django=={version('django')}"))
        ready = [(OURS if side is OURS else same).ready(_say) for side, _, _ in sides]
        for number in range(options.rounds):
            for side, (_, tasks, latencies) in zip(ready, sides, strict=True):
                numbers: Numbers = {}
                own = replace(sizes, queue={side.name: tasks}, latencies=latencies)
                for figure in (throughput, latency):
                    with fresh(side, place, Path(directory) / f"{side.name}-{number}", figure.__name__) as site:
                        numbers |= figure(site, own)
                found[side.name].append(numbers)
                _say(f"{side.title} {side.version}: " + ", ".join(f"{numbers[name]:.1f} {unit}" for name, unit in WANTED.items()))
    medians = {name: {wanted: statistics.median(one[wanted] for one in rounds) for wanted in WANTED} for name, rounds in found.items()}
    ours, theirs = medians[OURS.name], medians[THEIRS.name]
    print(f"\nPostgreSQL, Django {version('django')}, medians of {options.rounds}\n")
    for name, unit in WANTED.items():
        print(f"  {unit:24} Celeriac {ours[name]:10.1f}   django-tasks-db {theirs[name]:10.1f}")
    print(
        f"\n  {ours['drain_per_s'] / theirs['drain_per_s']:.1f} times as many tasks/s (aim: 20), start p50 {ours['start_p50_ms']:.2f} ms (aim: 5)"
    )
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
