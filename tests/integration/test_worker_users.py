"""`worker --uid --gid`: started by root, run as somebody else."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.workers import SOURCES, Project, WorkerProcess, until

NOBODY = pwd.getpwnam("nobody")


PATHS = [SOURCES, Path(msgspec.__file__).parents[1]]


def interpreter() -> str | None:
    """One with which `nobody` can run this checkout: ours, or the system's when ours lies in root's home."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        command = ["setpriv", "--reuid", str(NOBODY.pw_uid), "--regid", str(NOBODY.pw_gid), "--clear-groups", "env"]
        command += [python, "-c", "import celeriac.worker.supervisor, click, msgspec, pathlib"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
        if subprocess.run(command, env=environment, capture_output=True, cwd="/").returncode == 0:
            return python
    return None


@pytest.fixture
def project() -> Iterator[Project]:
    """In a directory that `nobody` may write in, who could not even enter those of pytest."""
    if os.geteuid() != 0:
        pytest.skip("only root may start a worker as another user")
    python = interpreter()
    if python is None:
        pytest.skip("there is no interpreter with which the user nobody can run this checkout")
    directory = Path(tempfile.mkdtemp(prefix="celeriac-users-"))
    project = Project(directory / "project", {}, python=python, paths=PATHS)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield project
    project.close()
    shutil.rmtree(directory)


def started(project: Project, *arguments: str) -> WorkerProcess:
    """A worker that is ready. Nothing here has touched the engine before, so its files are the worker's."""
    worker = project.worker("-c", "1", *arguments, ready=False)
    until(lambda: " ready." in worker.log() or worker.popen.poll() is not None, "it is ready")
    assert worker.popen.poll() is None, worker.log()
    return worker


def identity(pid: int) -> tuple[set[int], set[int], set[int]]:
    """All user ids, all group ids, and the further groups of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    users, groups, more = ({int(word) for word in lines[name].split()} for name in ("Uid", "Gid", "Groups"))
    return users, groups, more


def test_a_worker_that_root_starts_drops_to_the_user_it_is_told(project: Project) -> None:
    worker = started(project, "--uid", "nobody")
    child = project.tasks.whoami.delay().get(timeout=40)
    assert child in worker.children()
    for pid in (worker.pid, child):
        users, groups, more = identity(pid)
        assert users == {NOBODY.pw_uid} and groups == {NOBODY.pw_gid}, "no way back to root"
        assert 0 not in more
    assert worker.stop() == 0


def test_a_group_of_its_own_may_be_given(project: Project) -> None:
    other = next(group for group in grp.getgrall() if group.gr_gid not in (0, NOBODY.pw_gid))
    worker = started(project, "--uid", str(NOBODY.pw_uid), "--gid", other.gr_name)
    users, groups, more = identity(worker.pid)
    assert (users, groups) == ({NOBODY.pw_uid}, {other.gr_gid})
    assert 0 not in more
    until(lambda: identity(worker.children()[0])[0] == {NOBODY.pw_uid}, "its process is nobody's too")
    assert worker.stop() == 0


def test_a_user_that_does_not_exist_is_said_before_anything_starts(project: Project) -> None:
    worker = project.worker("-c", "1", "--uid", "nosuchuser", ready=False)
    assert worker.wait() != 0
    assert "no such user" in worker.log() and "nosuchuser" in worker.log() and "Traceback" not in worker.log()
