"""Five beats, of which any may be killed, stopped or resumed at any moment, and two of which have a wrong clock: each occurrence runs exactly once.
The short form runs with all tests; ten minutes of it with `make chaos`.

On the engines of servers the wrong clock is that of the whole process (libfaketime, where it is installed): theirs is the server's. The clock of SQLite
is the machine's, which all its processes share; there, everything of Python that asks for the time gets a wrong one, but for the engine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.schedules import LedgerLine
from tests.support.engines import every_engine
from tests.support.fixtures import MakeProject
from tests.support.workers import Project, state_of, until

ENGINES = ("sqlite", "redis", "postgresql", "rabbitmq")
"""RabbitMQ with its results, and so its schedules, in Redis."""
BEATS = 5
WRONG = {3: 90, 4: -90}
"""The beats whose clock is wrong, and by how many seconds."""
LATEST_SECONDS = 10.0
"""No occurrence may be later, whatever happens to the beats: ten times as long as the one that is always awake may sleep."""
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
WITH_WRONG_CLOCK = """
import sys, time
import celeriac.core.clock  # the engine's
right, wrong_by = time.time, float(sys.argv.pop(1))
time.time = lambda: right() + wrong_by
from celeriac.cli.main import main
main(sys.argv[1:])
"""
SCHEDULE = {
    "second": {"task": "proj.work", "schedule": 1.0, "args": ["second"]},
    "quarter": {"task": "proj.work", "schedule": 15.0, "args": ["quarter"]},
    "minute": {"task": "proj.work", "schedule": "* * * * *", "args": ["minute"]},
}
STEPS = {"second": 1.0, "quarter": 15.0, "minute": 60.0}


@dataclass
class Storm:
    """One run: what was done to which beat, and what came of it."""

    project: Project
    seed: int
    dice: random.Random = field(init=False)
    beats: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    told: dict[int, int] = field(default_factory=dict)
    """How long the log of each beat was when it was started the last time."""
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def run(self, *, seconds: float, every_seconds: float) -> None:
        self.project.worker("-c", "1")
        for number in range(BEATS):
            self.start(number)
        until(lambda: self.lines("second"), "the first occurrence")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(every_seconds, max(0.0, end - time.monotonic())))
            self.strike()
        for number in list(self.stopped):
            self.resume(number)
        last = self.project.app.schedule_store.now()
        until(lambda: self.lines("second")[-1].planned_at > last, "they go on")
        until(lambda: not self.project.app.schedule_store.kept(1, older_than_seconds=1.0), "what the dead have left is published")
        for popen in self.beats.values():
            popen.terminate()
        # One that was only just started has no handler yet.
        assert {popen.wait(30) for popen in self.beats.values()} <= {0, -signal.SIGTERM}

    # -- beats -----------------------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        words = ["-A", "proj", "beat", "-l", "info"]
        wrong = WRONG.get(number)
        command, more = [sys.executable, "-m", "celeriac", *words], {}
        keeps_schedules = str(self.project.settings.get("result_backend") or self.project.settings["broker_url"])
        if wrong is not None and not keeps_schedules.startswith("sqlite:") and LIBFAKETIME.exists():
            more = {"LD_PRELOAD": str(LIBFAKETIME), "FAKETIME": f"{wrong:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        elif wrong is not None:
            command = [sys.executable, "-c", WITH_WRONG_CLOCK, str(wrong), *words]
        with self.log(number).open("ab") as log:
            self.told[number] = log.tell()
            self.beats[number] = subprocess.Popen(
                command,
                cwd=self.project.directory,
                env=self.project._environment(more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.project.programs.append(self.beats[number])

    def strike(self) -> None:
        """Something befalls one of them; one of them always goes on."""
        awake = [number for number in self.beats if number not in self.stopped and self.works(number)]
        what = self.dice.choice(["kill", "stop", "continue"] if self.stopped else ["kill", "stop"])
        if what == "continue":
            self.resume(self.dice.choice(sorted(self.stopped)))
        elif what == "stop" and len(awake) > 1:
            self.stop(self.dice.choice(awake))
        elif victims := [number for number in self.beats if number not in awake or len(awake) > 1]:
            self.kill(self.dice.choice(victims))
        self.done[what] += 1

    def works(self, number: int) -> bool:
        """It has come so far since it was started."""
        return b"beat: Starting..." in self.log(number).read_bytes()[self.told[number] :]

    def log(self, number: int) -> Path:
        return self.project.directory / f"beat-{number}.log"

    def kill(self, number: int) -> None:
        """... and another is started in its place."""
        self.beats[number].kill()
        self.beats[number].wait(20)
        self.stopped.discard(number)
        self.start(number)

    def stop(self, number: int) -> None:
        """On SQLite not in the midst of a write, which would stop all others with it: docs/guarantees.md says so."""
        pid = self.beats[number].pid
        while True:
            os.kill(pid, signal.SIGSTOP)
            until(lambda: state_of(pid) in "TZX", "it has stopped")
            if self.project._writable():
                break
            os.kill(pid, signal.SIGCONT)
        self.stopped.add(number)

    def resume(self, number: int) -> None:
        os.kill(self.beats[number].pid, signal.SIGCONT)
        self.stopped.discard(number)

    def close(self) -> None:
        for popen in self.beats.values():
            with suppress(ProcessLookupError):
                popen.kill()
            popen.wait(20)

    # -- what came of it -------------------------------------------------------------------------------------------------

    def lines(self, entry: str) -> list[LedgerLine]:
        """The oldest first."""
        return self.project.app.schedules.history(entry, limit=1_000_000)[::-1]  # type: ignore[no-any-return]

    def check(self) -> str:
        self.project.wait_empty()
        told = []
        for entry, step in STEPS.items():
            lines = self.lines(entry)
            assert {line.outcome for line in lines} <= {"sent"}, entry
            gaps = [later.planned_at - line.planned_at for line, later in zip(lines, lines[1:], strict=False)]
            assert set(gaps) <= {step}, f"{entry}: missed or doubled"
            runs = Counter(found.id for found in self.project.starts(entry))
            assert runs == Counter(line.message_id for line in lines), f"{entry}: each planned time runs once"
            if lines:
                late = max(line.late_seconds for line in lines)
                told.append(
                    f"{entry}: {len(lines)} occurrences, at most {late:.2f} s late, {sum(line.suppressed for line in lines)} duplicates suppressed"
                )
                assert late <= LATEST_SECONDS, told
        logs = [path.read_text(errors="replace") for path in self.project.directory.glob("beat-*.log")]
        assert not [text for text in logs if "Traceback" in text], logs
        return f"{self.project.home.engine}, seed {self.seed}, {dict(self.done)}: " + "; ".join(told)


Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")

    return say


def storm(make_project: MakeProject, *, seed: int, seconds: float, every_seconds: float, **settings: Any) -> str:
    run = Storm(make_project(beat_schedule=SCHEDULE, **settings), seed)
    try:
        run.run(seconds=seconds, every_seconds=every_seconds)
        return run.check()
    finally:
        run.close()
        for path in sorted(run.project.directory.glob("beat-*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")


@pytest.mark.promise(7)
@every_engine(engines=ENGINES)
def test_p7_beats_that_are_killed_stopped_and_resumed_send_each_occurrence_once(make_project: MakeProject, report: Report) -> None:
    report(storm(make_project, seed=7, seconds=12, every_seconds=0.8))


@pytest.mark.promise(7)
@every_engine(always=(), engines=("rabbitmq",))
def test_p7_claims_in_sqlite_messages_in_rabbitmq(make_project: MakeProject, report: Report, tmp_path: Path) -> None:
    results = {"result_backend": f"sqlite:///{tmp_path / 'results.db'}", "result_backend_transport_options": {}}
    report(storm(make_project, seed=8, seconds=12, every_seconds=0.8, **results))


@pytest.mark.chaos
@pytest.mark.promise(7)
@pytest.mark.timeout(1800)
@every_engine(always=ENGINES, engines=ENGINES)
@pytest.mark.parametrize("seed", [71])
def test_p7_ten_minutes_of_it(make_project: MakeProject, report: Report, seed: int) -> None:
    report(storm(make_project, seed=seed, seconds=600, every_seconds=7))
