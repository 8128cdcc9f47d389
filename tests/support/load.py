"""Work that goes on while something happens: a program that sends tasks, workers that run them, and what must hold of them in the end."""

from __future__ import annotations

import statistics
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

from .workers import PATIENCE_SECONDS, Entry, Project, WorkerProcess, until

LIMIT_SECONDS = 1.0
"""broker_publish_timeout by default."""
SLACK_SECONDS = 2.5
"""What a machine may add on which twenty others compute, beside the moments in which it stands still. Less than the five seconds that a verb of a worker may
wait: a call that waited like one is seen."""
UNSETTLED_SECONDS = 3.0
"""So long before the death of a server may lie what its last answers have not made durable (`synchronous_commit` of PostgreSQL's claims and
settlements), and so long after it may a message start that was claimed before: less than a second, and what a busy machine adds."""

PRODUCER = """
import itertools, sys, time
import proj
from awake import AwakeClock

name = sys.argv[1]
work, flaky, once, after = proj.work, proj.flaky, proj.once, proj.after
proj.app.broker.depth(["celery"])  # what it takes to import and to connect belongs to no call
with AwakeClock() as awake:
    for number in itertools.count():
        if (proj.HERE / "gates" / f"{name}-enough").exists():
            break
        label = f"{name}-{number}"
        match number % 10:
            case 0:
                call = flaky.s(label, failures=1)
            case 1:
                call = work.s(label).set(link=after.s(f"after-{label}"))
            case 2:
                call = once.s(label)
            case 3:
                call = work.s(label).set(countdown=0.2)
            case _:
                call = work.s(label, seconds=number % 7 / 2000)
        began, awake_began = time.monotonic(), awake.seconds()
        try:
            task_id = call.delay().id
            what, error = "sent", ""
        except Exception as problem:
            task_id, what, error = getattr(problem, "task_id", ""), "refused", f"{type(problem).__name__}: {problem}"
        proj.write(what, label, id=task_id, error=error, began=began, seconds=awake.seconds() - awake_began, kind=call.task.rpartition(".")[2])
        time.sleep(0.004 if what == "sent" else 0.02)
"""


@dataclass
class Load:
    """One producer's tasks, and the workers."""

    project: Project
    workers: list[WorkerProcess]
    name: str = "load"
    program: subprocess.Popen[bytes] = field(init=False)
    server_kills: list[float] = field(default_factory=list)
    """When (monotonic) a server was killed: settlements of the last moments may be undone."""

    def __post_init__(self) -> None:
        self.pids = {worker.pid: worker.children() for worker in self.workers}
        self.program = self.project.program(PRODUCER, self.name)

    # -- what there is so far ------------------------------------------------------------------------------------------

    def sent(self) -> list[Entry]:
        return [entry for entry in self.project.journal("sent") if entry.label.startswith(f"{self.name}-")]

    def refused(self) -> list[Entry]:
        return [entry for entry in self.project.journal("refused") if entry.label.startswith(f"{self.name}-")]

    def more_done(self, tasks: int) -> None:
        """Waits until so many more have been sent, and have ended, than now."""
        begun = len(self.sent())
        until(lambda: len(self.sent()) >= begun + tasks, f"{tasks} more tasks are sent")
        ended = len(self.project.journal("end"))
        until(lambda: len(self.project.journal("end")) >= ended + tasks, f"{tasks} more tasks have ended")

    def more_refused(self, calls: int) -> None:
        """Waits until so many more calls have been refused."""
        before = len(self.refused())
        until(lambda: len(self.refused()) >= before + calls, f"{calls} more calls are refused")

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop(self, *, lost_before: float = 0.0) -> None:
        """Nothing more is sent; waits until all of it (that was sent after `lost_before`) has run."""
        self.project.open_gate(f"{self.name}-enough")
        assert self.program.wait(PATIENCE_SECONDS) == 0
        sent = [entry for entry in self.sent() if entry.began > lost_before]
        with suppress(AssertionError):  # `check` says what is missing
            self.project.wait_done([entry.id for entry in sent if entry.kind != "once"])
            until(lambda: not self._forgotten(sent), "what follows has started")
        self.project.wait_empty()

    def check(self, *, lost_before: float = 0.0) -> str:
        """Nothing is lost (but what was sent before `lost_before`), nothing is doubled, no call took long. Returns a line of figures."""
        journal = self.project.journal()
        sent = [entry for entry in self.sent() if entry.began > lost_before]
        self._check_that_all_ran(sent, journal)
        repeats = self._check_repeats(journal, lost_before)
        self._check_calls()
        return f"{len(self.sent())} sent, {len(self.refused())} refused, {repeats} repeated"

    def _check_that_all_ran(self, sent: list[Entry], journal: list[Entry]) -> None:
        due = [entry for entry in sent if entry.kind != "once"]
        ended = {entry.label for entry in journal if entry.what == "end"}
        missing = [entry.label for entry in due if entry.label not in ended]
        assert not missing, f"{len(missing)} of {len(due)} lost: {missing[:10]}"
        records = self.project.backend.fetch([entry.id for entry in due])
        unstored = [entry.label for entry in due if entry.id not in records or records[entry.id].status != "SUCCESS"]
        assert not unstored, f"results of {len(unstored)} lost: {unstored[:10]}"
        forgotten = self._forgotten(sent)
        assert not forgotten, f"follow-ups of {forgotten[:10]} lost"
        assert not self.project.dead()

    def _forgotten(self, sent: list[Entry]) -> list[str]:
        """Those with a follow-up that has not started."""
        started = {entry.label for entry in self.project.journal("start")}
        return [entry.label for entry in sent if int(entry.label.rpartition("-")[2]) % 10 == 1 and f"after-{entry.label}" not in started]

    def _check_repeats(self, journal: list[Entry], lost_before: float) -> int:
        starts: dict[tuple[str, int], list[Entry]] = {}
        ends: dict[tuple[str, int, int], float] = {}
        for entry in journal:
            if entry.what == "start":
                starts.setdefault((entry.label, entry.retries), []).append(entry)
            elif entry.what == "end":
                ends[entry.label, entry.retries, entry.pid] = entry.at
        repeats = 0
        # Where messages belong to a connection, a retry whose connection was lost may be refused, and the try is made again (docs/engines/rabbitmq.md).
        retried = {entry.label for entry in self.sent() if entry.kind == "flaky" and self.project.broker.capabilities.connection_leases}
        for (label, retries), entries in starts.items():
            for before, again in pairwise(entries):
                repeats += 1
                if label in retried and (label, retries, before.pid) not in ends:
                    continue
                ended_at = ends.get((label, retries, before.pid), before.at)
                explained = any(
                    before.at <= killed + UNSETTLED_SECONDS and ended_at >= killed - UNSETTLED_SECONDS for killed in self.server_kills
                )
                assert explained or before.at < lost_before, f"{label} started twice for no reason:\n{before}\n{again}\nended {ended_at}"
        return repeats

    def _check_calls(self) -> None:
        calls = sorted([*self.sent(), *self.refused()], key=lambda entry: entry.at)
        slow = [entry for entry in calls if entry.seconds > LIMIT_SECONDS + SLACK_SECONDS]
        assert not slow, slow
        assert all(entry.error.startswith("EnqueueError") and entry.id for entry in self.refused()), self.refused()[:3]
        in_a_row: Counter[str] = Counter()
        late = []
        for entry in calls:
            in_a_row["refused"] = in_a_row["refused"] + 1 if entry.what == "refused" else 0
            if in_a_row["refused"] > 3:
                late.append(entry.seconds)
        if len(late) >= 10:
            assert statistics.median(late) < 0.1, f"calls go on waiting for a server that has failed: {late}"

    def check_workers(self, *, troubles: int) -> None:
        """The same processes are there, and each has said at most so often that a trouble begins, and as often that it is over."""
        for worker in self.workers:
            said = [line for line in worker.log().splitlines() if ": INFO/" not in line]
            assert worker.popen.poll() is None, said
            assert worker.children() == self.pids[worker.pid], f"a process was replaced: {said}"
            until(lambda worker=worker: worker.log().count("is in trouble") == worker.log().count("is back after"), "every trouble is over")  # type: ignore[misc]
            # Once more may be: a server that is just starting answers, and is away again.
            assert worker.log().count("is in trouble") <= (troubles + 1) * (1 + len(self.pids[worker.pid])), said
            assert "Traceback" not in worker.log(), said
