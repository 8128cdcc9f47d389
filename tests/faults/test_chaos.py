"""SIGKILL at random moments, of processes, supervisors and whole workers, while they work; and SIGSTOP of whole workers until their lease is over.
The short form runs with all tests; the long one with `make chaos`.

What must hold: every task that was accepted has its result, and each start too many is explained by a kill. A killed process repeats at most the one
task it was running; a killed supervisor or worker at most what was running or had finished within the second before; a stopped one at most what it held.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from tests.support.fixtures import MakeProject
from tests.support.workers import SHORT_LEASE, Entry, Project, WorkerProcess, children_of, until

UNSETTLED_SECONDS = 1.0
"""For so long an outcome may lie in a process's page before it is settled."""
DYING_SECONDS = 0.05
"""For so long a process may go on on another processor after `kill` has returned."""


@dataclass
class Chaos:
    """One run: what was killed when, and what came of it."""

    project: Project
    seed: int
    pool: str
    dice: random.Random = field(init=False)
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    killed_children: dict[int, float] = field(default_factory=dict)
    """pid → when it alone was killed"""
    killed_supervisors: dict[int, float] = field(default_factory=dict)
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    """pid of a supervisor, and from when until when all of its worker was stopped"""
    ids: dict[str, str] = field(default_factory=dict)
    """label → task id, of all that must run at least once"""
    once: dict[str, str] = field(default_factory=dict)
    """... at most once"""
    follow_ups: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    # -- what happens --------------------------------------------------------------------------------------------

    def run(self, *, tasks: int, rounds: int, workers: int) -> None:
        for number in range(workers):
            self.start(f"w{number}", ready=True)
        for number in range(rounds):
            self.send(range(number * tasks // rounds, (number + 1) * tasks // rounds))
            time.sleep(self.dice.random() * 0.2)  # the random moment
            self.kill_somebody()
        self.project.wait_empty(seconds=600)

    def run_stops(self, *, tasks: int, rounds: int, workers: int) -> None:
        """As `run`, but each time a worker is stopped for longer than its lease, and goes on as a zombie."""
        for number in range(workers):
            self.start(f"w{number}", ready=True)
        for number in range(rounds):
            first, last = number * tasks // rounds, (number + 1) * tasks // rounds
            self.send(range(first, last - (last - first) // 5))
            time.sleep(self.dice.random() * 0.05)  # the random moment
            worker = self.workers[self.dice.choice(sorted(self.workers))]
            node = self.project.node(worker)
            begun = time.monotonic()
            self.project.freeze(worker)
            self.send(range(last - (last - first) // 5, last))
            until(lambda node=node: all(other.id != node.id for other in self.project.broker.nodes()), "its lease is over")  # type: ignore[misc]
            worker.signal_all(signal.SIGCONT)
            self.frozen.append((worker.pid, begun, time.monotonic()))
            until(lambda worker=worker: self.project.node(worker), "it has begun again")  # type: ignore[misc]
        self.project.wait_empty(seconds=600)

    def start(self, name: str, *, ready: bool) -> None:
        arguments = ("-c", "2") if self.pool == "prefork" else ("-c", "8", "-P", self.pool)
        self.workers[name] = self.project.worker(*arguments, name=name, ready=ready)

    def send(self, numbers: range) -> None:
        tasks = self.project.tasks
        for number in numbers:
            label = f"task-{number}"
            match number % 20:
                case 0:
                    self.ids[label] = tasks.work.delay(label, seconds=0.05).id
                case 1:
                    self.ids[label] = tasks.flaky.delay(label, failures=1, countdown=self.dice.random()).id
                case 2:
                    self.follow_ups.add(f"after-{label}")
                    self.ids[label] = tasks.work.apply_async([label], link=tasks.after.s(f"after-{label}")).id
                case 3:
                    self.ids[label] = tasks.work.apply_async([label], countdown=self.dice.random() * 2).id
                case 4:
                    self.once[label] = tasks.once.delay(label).id
                case five if five < 12:
                    self.ids[label] = tasks.work.delay(label).id
                case _:
                    self.ids[label] = tasks.work.delay(label, seconds=self.dice.random() * 0.015).id

    def kill_somebody(self) -> None:
        name = self.dice.choice(sorted(self.workers))
        worker = self.workers[name]
        kind = self.dice.choice(["child", "child", "supervisor", "all"])
        children = children_of(worker.pid)
        if kind == "child" and children:
            victim = self.dice.choice(children)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            self.killed_children[victim] = time.monotonic()
        else:
            kind = "all" if kind == "all" else "supervisor"
            (worker.signal_all if kind == "all" else worker.signal)(signal.SIGKILL)
            self.killed_supervisors[worker.pid] = time.monotonic()
            worker.wait()
            self.start(name, ready=self.dice.random() < 0.3)
        self.kills[kind] += 1

    # -- what must hold ------------------------------------------------------------------------------------------

    def check(self) -> str:
        """Returns a report in a line."""
        project = self.project
        records = project.backend.fetch([*self.ids.values()])
        lost = [label for label, id in self.ids.items() if id not in records or records[id].status != "SUCCESS"]
        assert not lost, f"lost: {lost[:10]}"
        assert not project.dead()
        journal = project.journal()
        ended = {entry.label for entry in journal if entry.what == "end"}
        assert not self.ids.keys() - ended
        started = Counter((entry.label, entry.retries) for entry in journal if entry.what == "start")
        assert not self.follow_ups - {label for label, _ in started}, "a follow-up was lost"
        follow_up_ids = {(entry.label, entry.id) for entry in journal if entry.label in self.follow_ups}
        assert len(follow_up_ids) == len(self.follow_ups), "a follow-up was sent twice"
        assert all(started[label, 0] <= 1 for label in self.once), "at most once means once"
        repeats, by_child = self.explain(journal)
        most = max(by_child.values(), default=0)
        if self.pool == "prefork":
            assert most <= 1, f"a killed process repeated {most} tasks"
        with sqlite3.connect(project.directory / "celeriac.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
        kills = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kills.items()))
        return (
            f"chaos ({self.pool}, seed {self.seed}): {len(self.ids)} tasks, {sum(self.kills.values())} SIGKILLs ({kills}), "
            f"{len(self.frozen)} workers stopped past their lease: 0 lost, "
            f"{repeats} repeated, all explained, at most {most} by one killed process; "
            f"{len(self.once)} at most once, {sum(started[label, 0] == 0 for label in self.once)} of them never started"
        )

    def explain(self, journal: list[Entry]) -> tuple[int, Counter[int]]:
        """How many starts were repeats, each explained by a kill; and how many each single killed process has caused."""
        starts: dict[tuple[str, int], list[Entry]] = {}
        ends: dict[tuple[str, int, int], float] = {}
        for entry in journal:
            if entry.what == "start":
                starts.setdefault((entry.label, entry.retries), []).append(entry)
            elif entry.what == "end":
                ends[entry.label, entry.retries, entry.pid] = entry.at
        repeats = 0
        by_child: Counter[int] = Counter()
        for (label, retries), entries in starts.items():
            for before, again in pairwise(entries):
                repeats += 1
                ended_at = ends.get((label, retries, before.pid), before.at)
                child_killed_at = self.killed_children.get(before.pid)
                supervisor_killed_at = self.killed_supervisors.get(before.ppid)
                by_kill_of_child = child_killed_at is not None and before.at <= child_killed_at + DYING_SECONDS
                by_kill_of_supervisor = (
                    supervisor_killed_at is not None
                    and before.at <= supervisor_killed_at + UNSETTLED_SECONDS
                    and ended_at >= supervisor_killed_at - UNSETTLED_SECONDS
                )
                by_stop = any(
                    pid in (before.ppid, again.ppid) and begun <= again.at and before.at <= ended + UNSETTLED_SECONDS
                    for pid, begun, ended in self.frozen
                )
                assert by_kill_of_child or by_kill_of_supervisor or by_stop, (
                    f"{label} started twice for no reason:\n{before}\n{again}\nended {ended_at}, child killed {child_killed_at}, "
                    f"supervisor killed {supervisor_killed_at}"
                )
                if by_kill_of_child and not by_kill_of_supervisor:
                    by_child[before.pid] += 1
        return repeats, by_child


Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return say


def chaos(make_project: MakeProject, *, seed: int, pool: str, tasks: int, rounds: int, workers: int, stops: bool = False) -> str:
    project = make_project(task_max_crashes=100, **(SHORT_LEASE if stops else {}))  # a task may be hit several times by chance
    run = Chaos(project, seed, pool)
    (run.run_stops if stops else run.run)(tasks=tasks, rounds=rounds, workers=workers)
    until(lambda: not run.follow_ups - {entry.label for entry in project.journal("start")}, "all follow-ups have run")
    return run.check()


@pytest.mark.promise(1)
@pytest.mark.parametrize(("pool", "seed"), [("prefork", 1), ("prefork", 2), ("threads", 3)])
def test_p1_ten_rounds_of_sigkill_lose_nothing(make_project: MakeProject, pool: str, seed: int) -> None:
    chaos(make_project, seed=seed, pool=pool, tasks=1000, rounds=10, workers=2)


@pytest.mark.promise(3)
@pytest.mark.parametrize(("pool", "seed"), [("prefork", 11), ("threads", 12)])
def test_p3_two_rounds_of_stopped_workers_lose_nothing_and_settle_once(make_project: MakeProject, pool: str, seed: int) -> None:
    chaos(make_project, seed=seed, pool=pool, tasks=600, rounds=2, workers=2, stops=True)


@pytest.mark.chaos
@pytest.mark.promise(1)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("pool", "seed"), [("prefork", 1001), ("prefork", 1002), ("prefork", 1003), ("threads", 1004), ("asyncio", 1005)])
def test_p1_a_hundred_rounds_of_sigkill_over_ten_thousand_tasks_lose_nothing(
    make_project: MakeProject, report: Report, pool: str, seed: int
) -> None:
    report(chaos(make_project, seed=seed, pool=pool, tasks=10_000, rounds=100, workers=3))


@pytest.mark.chaos
@pytest.mark.promise(3)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("pool", "seed"), [("prefork", 1011), ("threads", 1012), ("asyncio", 1013)])
def test_p3_twenty_rounds_of_stopped_workers_lose_nothing_and_settle_once(
    make_project: MakeProject, report: Report, pool: str, seed: int
) -> None:
    report(chaos(make_project, seed=seed, pool=pool, tasks=6000, rounds=20, workers=3, stops=True))
