"""What a worker's processes hold of each other."""

from __future__ import annotations

import os
from contextlib import suppress

from tests.support.workers import Project, until


def descriptors(pid: int) -> int:
    """How many open descriptors lead to such pages."""
    found = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # gone meanwhile
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                found += "celeriac-page" in os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def pages(pid: int) -> int:
    """How many pages that processes share with their supervisor are mapped; none when it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/maps") as lines:
        return sum("celeriac-page" in line for line in lines)
    return 0


def test_a_process_holds_nothing_of_its_siblings_and_the_supervisor_nothing_of_the_dead(project: Project) -> None:
    worker = project.worker("-c", "3", "--max-tasks-per-child", "5")
    assert project.app.control.ping(timeout=40)  # it has opened by now what it works with
    at_first = len(os.listdir(f"/proc/{worker.pid}/fd"))
    results = [project.tasks.whoami.delay() for _ in range(60)]
    pids = {result.get(timeout=40) for result in results}
    assert len(pids) >= 12
    until(lambda: len(worker.children()) == 3 and pages(worker.pid) == 3, "the supervisor has three pages")
    # Asked for anew each time: a process that has run its five tasks may go, and another come, while we look.
    until(lambda: [pages(pid) for pid in worker.children()] == [1, 1, 1], "each process has one page, its own")
    until(
        lambda: [descriptors(pid) for pid in worker.children()] == [2, 2, 2],
        "each has two descriptors of it: ours, and the one that mmap keeps",
    )
    until(lambda: len(os.listdir(f"/proc/{worker.pid}/fd")) <= at_first + 1, "the supervisor holds as many files as at first")
    assert worker.stop() == 0
