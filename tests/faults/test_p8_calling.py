"""P8: calling never hangs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time

import pytest

from celeriac.exceptions import EnqueueError
from tests.support.awake import AwakeClock
from tests.support.fixtures import MakeProject
from tests.support.workers import PATIENCE_SECONDS, SOURCES, Project

pytestmark = [pytest.mark.promise(8), pytest.mark.hasty]

LIMIT_SECONDS = 1.0
"""broker_publish_timeout by default."""


def refused(project: Project) -> EnqueueError:
    """The error of a call that must not hang."""
    with AwakeClock() as awake:
        with pytest.raises(EnqueueError) as caught:
            project.tasks.add.delay(1, 2)
        assert awake.seconds() < LIMIT_SECONDS + 1.0
    error = caught.value
    assert error.task_name == "proj.add" and error.task_id
    assert "proj.add" in str(error)
    return error


def test_p8_a_database_that_another_program_has_locked_is_an_error_within_a_second(project: Project) -> None:
    project.tasks.add.delay(0, 0)
    with sqlite3.connect(project.directory / "celeriac.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        error = refused(project)
        assert time.monotonic() - began > LIMIT_SECONDS / 2, "it did try for a while"
        other.execute("ROLLBACK")
    other.close()
    assert error.task_id not in project.broker.find([error.task_id])
    project.tasks.add.delay(1, 2)
    assert project.broker.depth(["celery"])["celery"].ready == 2, "what was refused is in no queue"


def test_p8_a_writer_that_was_stopped_in_the_middle_is_an_error_within_a_second(project: Project) -> None:
    """A stopped process may hold every lock there is."""
    project.tasks.add.delay(0, 0)
    program = project.program(
        """
import fcntl, glob, os, signal
for path in glob.glob("celeriac.db.wake/*lock*"):
    fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
print("held", flush=True)
signal.pause()
"""
    )
    assert program.stdout is not None and program.stdout.readline() == b"held\n"
    refused(project)
    program.kill()
    program.wait()
    project.tasks.add.delay(1, 2)


def test_p8_an_unreachable_database_is_an_error_at_once(make_project: MakeProject) -> None:
    for url in ("sqlite:////proc/nowhere/celeriac.db", "sqlite:////dev/null/celeriac.db"):
        project = make_project(broker_url=url)
        assert "/celeriac.db" in str(refused(project))


def test_p8_a_file_that_is_no_database_is_an_error_at_once(project: Project) -> None:
    (project.directory / "celeriac.db").write_bytes(b"this is a letter to my aunt\n" * 200)
    assert "celeriac.db" in str(refused(project))
    assert (project.directory / "celeriac.db").read_bytes().startswith(b"this is a letter")


CALLER = """
import os, resource, signal, sys
import proj
from awake import AwakeClock
{before}
with AwakeClock() as awake:
    try:
        for number in range(100_000):
            proj.work.delay("x" * 1000)
            accepted = number + 1
            if accepted >= {most}:
                break
    except Exception as error:
        print(type(error).__name__, accepted, awake.seconds(), error)
    else:
        print("accepted", accepted, 0, "")
"""


ROOT_NO_MORE = """
import ctypes, struct
ctypes.CDLL(None).capset(struct.pack("<Ii", 0x20080522, 0), bytes(24))
"""
"""Gives up what lets root write where the permissions say no."""


def test_p8_a_read_only_database_is_an_error_at_once(project: Project) -> None:
    project.tasks.add.delay(0, 0)
    project.app.close()
    wake = project.directory / "celeriac.db.wake"
    for path in (*wake.iterdir(), project.directory / "celeriac.db"):
        path.chmod(0o444)
    wake.chmod(0o555)
    project.directory.chmod(0o555)
    try:
        program = project.program(CALLER.format(before=ROOT_NO_MORE + "accepted = 0", most=1))
        assert program.stdout is not None
        kind, accepted, seconds, text = program.stdout.read().decode().split(maxsplit=3)
    finally:
        project.directory.chmod(0o755)
        wake.chmod(0o755)
    assert (kind, accepted) == ("EnqueueError", "0"), text
    assert float(seconds) < LIMIT_SECONDS + 1.0
    assert "proj.work" in text and "celeriac.db" in text and "permission" in text


def test_p8_a_full_disk_is_an_error_and_what_was_accepted_stays(project: Project) -> None:
    """A limit on the size of files stands for the disk; with it SQLite meets the same error."""
    project.tasks.add.delay(0, 0)
    limit = "accepted = 0\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))"
    program = project.program(CALLER.format(before=limit, most=100_000))
    assert program.stdout is not None
    kind, accepted, _, text = program.stdout.read().decode().split(maxsplit=3)
    assert kind == "EnqueueError", text
    assert "proj.work" in text
    assert int(accepted) > 50
    project.worker("-c", "2")
    project.wait_empty()
    assert len(project.journal("end")) >= int(accepted)


def test_p8_calling_does_not_touch_the_result_backend(make_project: MakeProject) -> None:
    """It may be away, or broken, or locked."""
    project = make_project()
    broken = project.directory / "results.db"
    broken.write_bytes(b"no database at all" * 1000)
    project.app.conf.result_backend = f"sqlite:///{broken}"
    before = broken.stat()
    result = project.tasks.add.delay(1, 2)
    assert project.broker.find([result.id])[result.id].state == "ready"
    assert broken.stat().st_mtime_ns == before.st_mtime_ns and broken.stat().st_size == before.st_size
    assert not (project.directory / "results.db.wake").exists()


def test_p8_a_coroutine_that_calls_never_hangs_its_loop(project: Project) -> None:
    import asyncio

    project.tasks.add.delay(0, 0)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        with AwakeClock() as awake:
            with pytest.raises(EnqueueError):
                await project.tasks.add.adelay(1, 2)
            assert awake.seconds() < LIMIT_SECONDS + 1.0
        ticking.cancel()

    with sqlite3.connect(project.directory / "celeriac.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        asyncio.run(main())
        other.execute("ROLLBACK")
    other.close()
    assert ticks > 10, "the loop went on while the call waited"


def test_p8_a_program_that_calls_can_end_while_the_database_is_locked(project: Project) -> None:
    """No thread, connection or exit hook keeps it."""
    project.tasks.add.delay(0, 0)
    with sqlite3.connect(project.directory / "celeriac.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = subprocess.run(
            [sys.executable, "-c", "import proj\ntry:\n    proj.add.delay(1, 2)\nexcept Exception as e:\n    print(type(e).__name__)"],
            cwd=project.directory,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        other.execute("ROLLBACK")
    other.close()
    assert done.stdout == "EnqueueError\n", done.stderr
