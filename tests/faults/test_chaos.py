"""SIGKILL at random moments, of processes, supervisors, whole workers and servers, while they work; and SIGSTOP of whole workers until their lease is
over. The short form runs with all tests; the long one with `make chaos`.

What must hold: every task that was accepted has its result, and each start too many is explained by a kill. A killed process repeats at most the one
task it was running; a killed supervisor or worker at most what was running or had finished within the second before; a stopped one at most what it held; a killed server
at most what was running, had finished within the second before, or ended while it was away.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from celeriac.core.errors import EngineUnavailable
from celeriac.exceptions import EnqueueError
from tests.support.awake import AwakeClock
from tests.support.engines import SERVERS, Home, ServerHome, every_engine, own_home
from tests.support.fixtures import MakeProject
from tests.support.workers import SHORT_LEASE, Entry, Project, WorkerProcess, children_of, until

UNSETTLED_SECONDS = 1.0
"""For so long an outcome may lie in a process's page before it is settled, where the machine does not stand still meanwhile."""
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
    killed_servers: list[tuple[float, float]] = field(default_factory=list)
    """when it was killed, and when it answered again"""
    by_server: int = 0
    """repeats that only the kill of a server explains"""
    refused: int = 0
    """calls that raised; they were made again"""
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    """pid of a supervisor, and from when until when all of its worker was stopped"""
    ids: dict[str, str] = field(default_factory=dict)
    """label → task id, of all that must run at least once"""
    once: dict[str, str] = field(default_factory=dict)
    """... at most once"""
    follow_ups: set[str] = field(default_factory=set)
    unsettled_seconds: float = UNSETTLED_SECONDS

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What happens within; how long the machine stood still meanwhile is allowed for."""
        with AwakeClock() as awake:
            yield
        self.unsettled_seconds += awake.longest_standstill_seconds

    # -- what happens --------------------------------------------------------------------------------------------

    def run(self, *, tasks: int, rounds: int, workers: int) -> None:
        for number in range(workers):
            self.start(f"w{number}", ready=True)
        for number in range(rounds):
            self.send(range(number * tasks // rounds, (number + 1) * tasks // rounds))
            time.sleep(self.dice.random() * 0.2)  # the random moment
            self.kill_somebody()
        self.wait_for_the_end()

    def run_with_server(self, home: ServerHome, *, tasks: int, kills: int, workers: int) -> None:
        """As `run`, with so many kills of processes, of supervisors (half of them with all their processes), and of the server."""
        for number in range(workers):
            self.start(f"w{number}", ready=True)
        kinds = ["child"] * kills + ["supervisor", "all"] * (kills // 2) + ["server"] * kills
        self.dice.shuffle(kinds)
        for number, kind in enumerate(kinds):
            self.send(range(number * tasks // len(kinds), (number + 1) * tasks // len(kinds)))
            time.sleep(self.dice.random() * 0.2)  # the random moment
            self.start_those_that_have_ended()
            if kind == "server":
                self.kill_server(home)
            else:
                self.kill_somebody(kind)
        self.wait_for_the_end()

    def kill_server(self, home: ServerHome) -> None:
        begun = time.monotonic()
        home.kill()
        home.start()
        self.killed_servers.append((begun, time.monotonic()))
        self.kills["server"] += 1

    def start_those_that_have_ended(self) -> None:
        """A worker that starts while the server is away ends with an error, and whatever runs it starts it again."""
        for name, worker in self.workers.items():
            if worker.popen.poll() is not None:
                self.start(name, ready=False)

    def wait_for_the_end(self) -> None:
        ids = set(self.ids.values())

        def all_done() -> bool:
            self.start_those_that_have_ended()
            some = list(ids)[:500]
            try:
                records = self.project.backend.fetch(some)
            except EngineUnavailable:  # our own connection of before
                return False
            ids.difference_update(id for id in some if id in records and records[id].status == "SUCCESS")
            return not ids

        with suppress(AssertionError):  # `check` says what is lost
            until(all_done, "all tasks have ended", seconds=120)
        self.project.wait_empty(seconds=60)

    def wait_for_follow_ups(self) -> None:
        with suppress(AssertionError):  # `check` says what is lost
            until(lambda: not self.follow_ups - {entry.label for entry in self.project.journal("start")}, "all follow-ups have run")

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
        self.wait_for_the_end()

    def start(self, name: str, *, ready: bool) -> None:
        arguments = ("-c", "2") if self.pool == "prefork" else ("-c", "8", "-P", self.pool)
        self.workers[name] = self.project.worker(*arguments, name=name, ready=ready)

    def send(self, numbers: range) -> None:
        for number in numbers:
            label = f"task-{number}"
            while True:
                try:
                    self.send_one(number, label)
                    break
                except EnqueueError:  # it may have been accepted all the same
                    self.refused += 1
                    self.follow_ups.discard(f"after-{label}")
                    label += "'"
                    time.sleep(0.02)

    def send_one(self, number: int, label: str) -> None:
        tasks = self.project.tasks
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

    def kill_somebody(self, kind: str | None = None) -> None:
        name = self.dice.choice(sorted(self.workers))
        worker = self.workers[name]
        children = children_of(worker.pid)
        if kind == "child":  # it may just be starting
            children = (
                until(lambda: children_of(self.workers[name].pid) or self.start_those_that_have_ended(), f"{name} has processes") or []
            )
            worker = self.workers[name]
        kind = kind or self.dice.choice(["child", "child", "supervisor", "all"])
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
        if project.broker.capabilities.ids:
            assert len(follow_up_ids) == len(self.follow_ups), "a follow-up was sent twice"
        twice = [label for label in self.once if started[label, 0] > 1]
        if (
            project.broker.capabilities.ids or not self.killed_servers
        ):  # RabbitMQ confirms no acknowledgement, so it may die with one unread
            assert not twice, f"at most once means once: {twice}"
        repeats, by_child = self.explain(journal)
        most = max(by_child.values(), default=0)
        if self.pool == "prefork":
            assert most <= 1, f"a killed process repeated {most} tasks"
        if project.home.engine == "sqlite":
            with closing(sqlite3.connect(project.directory / "celeriac.db")) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        kills = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kills.items()))
        twice = [label for label in self.once if started[label, 0] > 1]
        report = (
            f"chaos ({project.home.engine}, {self.pool}, seed {self.seed}): {len(self.ids) + len(self.once)} tasks, {sum(self.kills.values())} SIGKILLs ({kills}), "
            f"{len(self.frozen)} workers stopped past their lease: 0 lost, "
            f"{repeats} repeated, all explained, at most {most} by one killed process, {self.by_server} by the server alone; {self.refused} calls refused; "
            f"{len(self.once)} at most once, {sum(started[label, 0] == 0 for label in self.once)} of them never started, {len(twice)} twice"
        )
        if (
            project.broker.capabilities.ids or not self.killed_servers
        ):  # RabbitMQ confirms no acknowledgement, so it may die with one unread
            assert not twice, f"at most once means once: {twice}; {report}"
        return report

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
            for before, again in pairwise(sorted(entries, key=lambda entry: entry.at)):  # who was stopped may have written late
                repeats += 1
                ended_at = ends.get((label, retries, before.pid), before.at)
                child_killed_at = self.killed_children.get(before.pid)
                supervisor_killed_at = self.killed_supervisors.get(before.ppid)
                by_kill_of_child = child_killed_at is not None and before.at <= child_killed_at + DYING_SECONDS
                by_kill_of_supervisor = (
                    supervisor_killed_at is not None
                    and before.at <= supervisor_killed_at + self.unsettled_seconds
                    and ended_at >= supervisor_killed_at - self.unsettled_seconds
                )
                by_stop = any(
                    pid in (before.ppid, again.ppid) and begun <= again.at and before.at <= ended + self.unsettled_seconds
                    for pid, begun, ended in self.frozen
                )
                by_server = any(
                    before.at <= back + self.unsettled_seconds and ended_at >= killed - self.unsettled_seconds
                    for killed, back in self.killed_servers
                )
                if by_server and not (by_kill_of_child or by_kill_of_supervisor or by_stop):
                    self.by_server += 1
                # RabbitMQ knows no ids: who was killed between publishing what follows and its acknowledgement has it published again.
                by_kill_of_parent = not self.project.broker.capabilities.ids and any(
                    parent.pid in self.killed_children or parent.ppid in self.killed_supervisors
                    for parent in starts.get((label.removeprefix("after-"), 0), [])
                    if label in self.follow_ups
                )
                assert by_kill_of_child or by_kill_of_supervisor or by_stop or by_server or by_kill_of_parent, (
                    f"{label} started twice for no reason:\n{before}\n{again}\nended {ended_at}, child killed {child_killed_at}, "
                    f"supervisor killed {supervisor_killed_at}"
                )
                if by_kill_of_child and not (by_kill_of_supervisor or by_server):
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
    with run.watched():
        (run.run_stops if stops else run.run)(tasks=tasks, rounds=rounds, workers=workers)
    run.wait_for_follow_ups()
    return run.check()


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("engine", "pool", "seed"),
    [("sqlite", "prefork", 1), ("sqlite", "prefork", 2), ("sqlite", "threads", 3), ("rabbitmq", "prefork", 4), ("rabbitmq", "threads", 5)],
    indirect=["engine"],
)
def test_p1_ten_rounds_of_sigkill_lose_nothing(make_project: MakeProject, pool: str, seed: int) -> None:
    chaos(make_project, seed=seed, pool=pool, tasks=1000, rounds=10, workers=2)


@pytest.mark.promise(3)
@every_engine(always=("sqlite", "redis"))
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
@every_engine()
@pytest.mark.parametrize(("pool", "seed"), [("prefork", 1011), ("threads", 1012), ("asyncio", 1013)])
def test_p3_twenty_rounds_of_stopped_workers_lose_nothing_and_settle_once(
    make_project: MakeProject, report: Report, pool: str, seed: int
) -> None:
    report(chaos(make_project, seed=seed, pool=pool, tasks=6000, rounds=20, workers=3, stops=True))


@pytest.mark.hasty
class TestWithServers:
    """The same, and the server is killed as well, as often as processes and supervisors. It keeps what it has answered: in the long runs on the disk."""

    @pytest.fixture
    def home(self, engine: str, request: pytest.FixtureRequest) -> Iterator[Home]:
        with own_home(engine, keeps="disk" if request.node.get_closest_marker("chaos") else "file") as home:
            yield home

    @pytest.mark.promise(1)
    @every_engine(always=("redis", "postgresql"), engines=SERVERS)
    def test_p1_kills_of_processes_supervisors_and_the_server_lose_nothing(
        self, make_project: MakeProject, home: ServerHome, report: Report
    ) -> None:
        report(self.run(make_project, home, seed=21, tasks=400, kills=2, workers=2))

    @pytest.mark.chaos
    @pytest.mark.promise(1)
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("engine", SERVERS, indirect=True)
    def test_p1_fifty_kills_each_over_ten_thousand_tasks_lose_nothing(
        self, make_project: MakeProject, home: ServerHome, report: Report
    ) -> None:
        report(self.run(make_project, home, seed=1021, tasks=10_000, kills=50, workers=3))

    @staticmethod
    def run(make_project: MakeProject, home: ServerHome, *, seed: int, tasks: int, kills: int, workers: int) -> str:
        project = make_project(task_max_crashes=100)
        run = Chaos(project, seed, "prefork")
        with run.watched():
            run.run_with_server(home, tasks=tasks, kills=kills, workers=workers)
        run.wait_for_follow_ups()
        return run.check()
