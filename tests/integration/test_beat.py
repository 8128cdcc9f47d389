"""Real beats: alone, beside a worker, in the background; and changes while they run."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from typing import Any

from tests.support.fixtures import MakeProject
from tests.support.workers import PATIENCE_SECONDS, Project, WorkerProcess, children_of, is_alive, until

EVERY_SECOND = {"second": {"task": "proj.work", "schedule": 1.0, "args": ["second"]}}

SOON_SECONDS = 20.0
"""A beat at rest looks every second, and whatever its settings every five."""


def start_beat(project: Project, *words: str) -> subprocess.Popen[bytes]:
    with (project.directory / "beat.log").open("ab") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", "celeriac", "-A", "proj", "beat", "-l", "info", *words],
            cwd=project.directory,
            env=project._environment(None),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    project.programs.append(popen)
    return popen


def log_of(project: Project) -> str:
    return (project.directory / "beat.log").read_text()


def sent(project: Project, entry: str) -> list[Any]:
    return [line for line in project.app.schedules.history(entry, limit=1000)[::-1] if line.outcome == "sent"]


def test_beat_sends_says_so_and_ends_with_term(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    beat = start_beat(project, "-s", "celerybeat-schedule", "--max-interval", "2")
    project.worker("-c", "1")
    project.wait_started("second", times=2)
    beat.send_signal(signal.SIGTERM)
    assert beat.wait(PATIENCE_SECONDS) == 0
    text = log_of(project)
    assert "-s: where the schedule stands is kept in the engine" in text
    assert "beat: Starting..." in text and "beat: Stopped." in text
    assert "Scheduler: Sending due task second (proj.work)" in text
    assert not (project.directory / "celerybeat-schedule").exists()


def test_ctrl_c_ends_it_too(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    beat = start_beat(project)
    until(lambda: "beat: Starting" in log_of(project), "it has begun")
    beat.send_signal(signal.SIGINT)
    assert beat.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in log_of(project)


def test_a_pidfile_and_the_background(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    pidfile = project.directory / "beat.pid"
    first = project.command("beat", "--detach", "-l", "info", "--pidfile", str(pidfile), "--logfile", "beat.log")
    assert first.returncode == 0, first.stderr
    pid = int(pidfile.read_text())
    assert is_alive(pid) and pid in project.processes()
    until(lambda: sent(project, "second"), "it sends in the background")
    second = project.command("beat", "--pidfile", str(pidfile))
    assert second.returncode == 73
    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid), "it has ended")
    assert not pidfile.exists()


def test_an_engine_without_schedules_is_refused_in_a_sentence(make_project: MakeProject) -> None:
    project = make_project(broker_url="memory://", result_backend="disabled://")
    (project.directory / "proj.py").write_text(
        "from celeriac import Celeriac\n"
        "app = Celeriac('proj', broker='memory://', result_backend='disabled://')\n"
        "app.broker.__class__.schedules = None\n"
    )
    done = project.command("beat")
    assert done.returncode == 78 and "Schedules are kept in the engine" in done.stderr, done.stderr


# -- changes ---------------------------------------------------------------------------------------------------------------


def test_changes_take_effect_within_five_seconds(make_project: MakeProject) -> None:
    """By the Python API, by the command line, and by SQL."""
    project = make_project()
    start_beat(project)
    until(lambda: "beat: Starting" in log_of(project), "it has begun")
    schedules = project.app.schedules
    now = schedules.store.now

    schedules.put("api", 1, "proj.add", (1, 2))
    begun = now()
    until(lambda: sent(project, "api"), "an entry that was put is sent")
    assert sent(project, "api")[0].fired_at - begun < 1 + SOON_SECONDS

    assert project.command("schedule", "add", "cli", "proj.add", "--every", "1", "-a", "[1, 2]").returncode == 0
    begun = now()
    until(lambda: sent(project, "cli"), "an entry that was added is sent")
    assert sent(project, "cli")[0].fired_at - begun < 1 + SOON_SECONDS

    database = sqlite3.connect(project.directory / "celeriac.db", timeout=10, isolation_level=None)
    begun = now()
    database.execute("INSERT INTO schedules (name, schedule, task, args) VALUES ('sql', '1', 'proj.add', '[1, 2]')")
    until(lambda: sent(project, "sql"), "a row that was inserted is sent")
    assert sent(project, "sql")[0].fired_at - begun < 1 + SOON_SECONDS

    database.execute("UPDATE schedules SET enabled = 0 WHERE name = 'sql'")
    schedules.pause("api")
    before = {name: len(sent(project, name)) for name in ("sql", "api")}
    cli = len(sent(project, "cli"))
    until(lambda: len(sent(project, "cli")) > cli + 2, "the third goes on")
    assert {name: len(sent(project, name)) for name in ("sql", "api")} == before
    database.execute("UPDATE schedules SET enabled = 1, schedule = '2' WHERE name = 'sql'")
    until(lambda: len(sent(project, "sql")) > before["sql"] + 1, "it goes on")
    times = [line.planned_at for line in sent(project, "sql")[before["sql"] :]]
    assert {later - one for one, later in zip(times, times[1:], strict=False)} == {2.0}
    database.execute("DELETE FROM schedules WHERE name = 'sql'")
    database.close()
    assert "Traceback" not in log_of(project)


def test_a_row_that_nobody_can_read_is_told_once_and_hinders_nobody(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    start_beat(project)
    until(lambda: sent(project, "second"), "it has begun")
    database = sqlite3.connect(project.directory / "celeriac.db", timeout=10, isolation_level=None)
    database.execute("INSERT INTO schedules (name, schedule, task) VALUES ('bad', '61 * * * *', 'proj.add')")
    database.execute("INSERT INTO schedules (name, schedule, task, args) VALUES ('worse', '1', 'proj.add', '{}')")
    bad = "bad is not sent: its schedule cannot be read: Invalid crontab pattern: minute is 0 to 59"
    worse = "worse is not sent: The row of this entry cannot be read: args must be a JSON array"
    until(lambda: bad in log_of(project) and worse in log_of(project), "both are told")
    count = len(sent(project, "second"))
    until(lambda: len(sent(project, "second")) > count + 2, "the others go on")
    assert [log_of(project).count(words) for words in (bad, worse)] == [1, 1]
    database.execute("UPDATE schedules SET schedule = '1' WHERE name = 'bad'")
    database.execute("UPDATE schedules SET args = '[1, 2]' WHERE name = 'worse'")
    until(lambda: sent(project, "bad") and sent(project, "worse"), "mended rows are sent")
    database.close()


# -- beside a worker -------------------------------------------------------------------------------------------------------


def beats_among(project: Project, worker: WorkerProcess) -> list[int]:
    """The children of the supervisor that run no tasks."""
    tasks = {entry.pid for entry in project.journal("start")}
    return [pid for pid in worker.children() if pid not in tasks]


def test_workers_with_beats_send_each_occurrence_once(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    workers = [project.worker("-B", "-c", "1"), project.worker("-B", "-c", "1", "-P", "threads"), project.worker("-B", "-P", "solo")]
    project.wait_started("second", times=4)
    until(lambda: all("beat: Starting..." in worker.log() for worker in workers), "their beats have begun")
    for worker in workers:
        assert worker.stop() == 0
        assert "beat: Stopped." in worker.log()
    lines = sent(project, "second")
    assert {later.planned_at - line.planned_at for line, later in zip(lines, lines[1:], strict=False)} == {1.0}
    assert project.processes() == []


def test_a_beat_that_dies_is_started_again_and_tasks_notice_nothing(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    worker = project.worker("-B", "-c", "1")
    project.wait_started("second")
    until(lambda: len(worker.children()) == 2, "a process for tasks and one for beat")
    (beat,) = beats_among(project, worker)
    os.kill(beat, signal.SIGKILL)
    until(lambda: "The process of beat ended with exit code -9" in worker.log(), "it is noticed")
    count = len(project.starts("second"))
    project.wait_started("second", times=count + 2)
    (again,) = until(lambda: beats_among(project, worker), "there is another")
    assert again != beat
    assert len({entry.pid for entry in project.starts("second")}) == 1


def test_a_beat_dies_with_its_supervisor(make_project: MakeProject) -> None:
    project = make_project(beat_schedule=EVERY_SECOND)
    worker = project.worker("-B", "-c", "1")
    project.wait_started("second")
    children = children_of(worker.pid)
    assert len(children) == 2
    worker.signal(signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in children), "both are gone")
