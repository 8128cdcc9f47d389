"""Workflows on Redis, Celeriac beside Celery: `python -m bench.workflows [--rounds 5] [--turns 2] [--members 1000]`.

    chord    from the call of a chord of no-op members to its finished body, signatures made before; median of the rounds, after one that does not count
    member   how much longer workers take for the members of a chord than for as many plain tasks (Celeriac; both wait in the queue when the clock starts)

Both sides run two processes on one server that was started for them, and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import servers
from .sides import REPOSITORY, SIDES, Side

PROJECT = """
import json, os, statistics, sys, time
if os.environ["BENCH_SIDE"] == "celery":
    from celery import Celery as App, chord
else:
    from celeriac import Celeriac as App, chord
app = App("flows", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"] or None)

@app.task(name="flows.noop")
def noop(): return None

@app.task(name="flows.done")
def done(values): return len(values)


def chords(members, rounds):
    noop.delay().get(timeout=60)
    times = []
    for number in range(rounds + 1):
        whole = chord([noop.s() for _ in range(members)], done.s())
        began = time.perf_counter()
        result = whole.apply_async()
        assert result.get(timeout=300) == members
        times.append(time.perf_counter() - began)
    return times[1:]


def drained(send, messages):
    app.broker.pause(["celery"], by="bench")
    send()
    began = time.perf_counter()
    app.broker.resume(["celery"])
    while (depth := app.broker.depth(["celery"])["celery"]).ready or depth.leased:
        time.sleep(0.002)
    return time.perf_counter() - began


def members(count, rounds):
    noop.delay().get(timeout=60)
    plain = lambda: [noop.delay() for _ in range(count)]
    joined = lambda: chord([noop.s() for _ in range(count)], done.si([])).apply_async()
    times = [(drained(plain, count), drained(joined, count)) for _ in range(rounds + 1)]
    return times[1:]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*map(int, sys.argv[2:]))))
"""


@contextmanager
def worker_of(side: Side, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Two processes of it."""
    command = [side.python, "-m", side.name, "-A", "flows", "worker", "-c", "2", "-l", "WARNING"]
    with (folder / f"{side.name}.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def ask(side: Side, folder: Path, environment: dict[str, str], *words: str) -> object:
    """What a client of this side measures."""
    done = subprocess.run([side.python, "flows.py", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{side.title}: {done.stderr[-2000:]}\n{(folder / f'{side.name}.log').read_text()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.workflows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2, help="how often each side has its turn")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--count", type=int, default=20_000, help="plain tasks, and members, for `member`")
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    sides = [side.ready(say) for side in (SIDES["celeriac"], SIDES["celery"])]
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as name, servers.redis(Path(name) / "redis") as server:
        folder = Path(name)
        (folder / "flows.py").write_text(PROJECT)
        medians: dict[str, float] = {}
        spread: dict[str, list[float]] = {side.name: [] for side in sides}
        for turn in range(given.turns):  # the sides take turns, so that what else the machine does meets both
            for side in sides:
                server.empty()
                environment = {
                    **os.environ,
                    "BENCH_SIDE": side.name,
                    "BENCH_BROKER": server.url(),
                    "BENCH_BACKEND": server.backend_url() if side.name == "celery" else "",
                    "PYTHONPATH": str(REPOSITORY / "src") if side.name == "celeriac" else "",
                }
                with worker_of(side, folder, environment):
                    say(f"{side.title}, turn {turn + 1} of {given.turns} …")
                    spread[side.name] += ask(side, folder, environment, "chords", str(given.members), str(given.rounds))  # type: ignore[misc]
        for side in sides:
            times = spread[side.name]
            medians[side.name] = statistics.median(times)
            print(
                f"chord of {given.members}: {side.title} {side.version}  {1000 * medians[side.name]:.0f} ms  ({1000 * min(times):.0f} to {1000 * max(times):.0f})"
            )
        if len(medians) == 2:
            print(f"chord of {given.members}: {medians['celery'] / medians['celeriac']:.1f} times as fast (aim: 20)")
        (ours,) = (side for side in sides if side.name == "celeriac")
        server.empty()
        environment = {
            **os.environ,
            "BENCH_SIDE": "celeriac",
            "BENCH_BROKER": server.url(),
            "BENCH_BACKEND": "",
            "PYTHONPATH": str(REPOSITORY / "src"),
        }
        with worker_of(ours, folder, environment):
            pairs = ask(ours, folder, environment, "members", str(given.count), str(given.rounds))
        ratio = statistics.median(joined / plain for plain, joined in pairs)  # type: ignore[attr-defined]
        plain, joined = (statistics.median(column) for column in zip(*pairs, strict=True))  # type: ignore[call-overload]
        print(
            f"member: {1e6 * joined / given.count:.1f} µs beside {1e6 * plain / given.count:.1f} µs for a plain task, {100 * (ratio - 1):+.0f} % (aim: below +20 %)"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
