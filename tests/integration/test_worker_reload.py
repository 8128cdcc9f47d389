"""`worker --reload`: a changed file, and the new code runs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.workers import Project, children_of, is_alive, until

pytest.importorskip("watchfiles")


def changed_until(path: Path, text: str, project: Project, times: int) -> None:
    """Writes a file anew until the worker has noticed: its watch begins some time after the worker itself."""
    log = project.workers[-1]

    def noticed() -> bool:
        path.write_text(text)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            if log.log().count("starting again") >= times:
                return True
            time.sleep(0.02)
        return False

    until(noticed, "the change is noticed")


def test_a_changed_file_is_what_the_worker_runs_next(project: Project) -> None:
    source = project.directory / "proj.py"
    code = source.read_text()
    watcher = project.worker("-c", "1", "--reload", ready=False)
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    changed_until(source, code.replace("return x + y", "return x * y"), project, 1)
    until(lambda: project.tasks.add.delay(2, 3).get(timeout=40) == 6, "the new code runs")
    assert watcher.log().count("proj.py") >= 1
    watcher.signal(signal.SIGTERM)
    assert watcher.wait() == 0
    until(lambda: not project.processes(), "nothing is left of it")
    assert not project.broker.nodes()


def test_code_that_cannot_be_imported_does_not_end_the_watch(project: Project) -> None:
    source = project.directory / "proj.py"
    code = source.read_text()
    watcher = project.worker("-c", "1", "--reload", ready=False)
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    changed_until(source, "this is no Python\n", project, 1)
    until(lambda: not [pid for pid in children_of(watcher.pid) if is_alive(pid)], "the worker has ended")
    assert watcher.popen.poll() is None, watcher.log()
    changed_until(source, code, project, 2)
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    assert watcher.stop() == 0


def test_what_runs_may_end_before_the_new_code_comes(project: Project) -> None:
    watcher = project.worker("-c", "1", "--reload", ready=False)
    long = project.tasks.work.delay("long", gate="go")
    project.wait_started("long")
    changed_until(project.directory / "other.py", "x = 1\n", project, 1)
    project.open_gate("go")
    project.wait_state(long.id, "SUCCESS")
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    assert len(project.starts("long")) == 1
    assert watcher.stop() == 0
