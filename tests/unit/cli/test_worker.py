"""`celeriac worker`: what its flags become, and what it refuses. The worker itself is a function that takes notes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from celeriac.worker.options import WorkerOptions
from tests.unit.cli.conftest import Run

Start = Callable[..., WorkerOptions]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[WorkerOptions]]:
    """The options of each worker that was run."""
    seen: list[WorkerOptions] = []
    module: Any = ModuleType("celeriac.worker.supervisor")
    module.run_worker = lambda app, options, companions=(): seen.append(options) or 0
    monkeypatch.setitem(sys.modules, "celeriac.worker.supervisor", module)
    yield seen


@pytest.fixture
def start(project: Path, run: Run, started: list[WorkerOptions]) -> Start:
    def call(*arguments: str) -> WorkerOptions:
        result = run("-A", "proj", "worker", *arguments)
        assert result.exit_code == 0, result.output
        return started.pop()

    return call


def test_defaults_leave_all_to_the_settings(start: Start) -> None:
    assert start() == WorkerOptions(app_path="proj", hostname=f"celeriac@{socket.gethostname()}")


def test_every_flag_of_celerys(start: Start, project: Path) -> None:
    (project / "proj" / "extra.py").touch()
    options = start(
        *"-n w1@%h -l debug -Q high,low -X low -c 4 --time-limit 9.5 --soft-time-limit 8 --max-tasks-per-child 7".split(),
        *"--max-memory-per-child 50000 --autoscale 10,3 -E --purge -I proj.extra --pool-start-method spawn --soft-shutdown-timeout 5".split(),
        f"--logfile={project}/%n.log",
    )
    host = socket.gethostname()
    assert options == WorkerOptions(
        app_path="proj",
        hostname=f"w1@{host}",
        queues=["high", "low"],
        exclude_queues=["low"],
        concurrency=4,
        max_tasks_per_child=7,
        max_memory_per_child=50000,
        autoscale=(10, 3),
        time_limit=9.5,
        soft_time_limit=8.0,
        start_method="spawn",
        loglevel="DEBUG",
        logfile=f"{project}/w1.log",
        purge=True,
        task_events=True,
        include=["proj.extra"],
        soft_shutdown_timeout=5.0,
    )


@pytest.mark.parametrize(
    ("given", "pool"), [("threads", "threads"), ("processes", "prefork"), ("GEVENT", "gevent"), ("asyncio", "asyncio"), ("solo", "solo")]
)
def test_pools(start: Start, given: str, pool: str) -> None:
    assert start("-P", given).pool == pool


def test_concurrency_auto_and_autoscale_alone(start: Start) -> None:
    assert start("-c", "auto").concurrency is None
    assert start("--autoscale", "4").autoscale == (4, 1)
    assert start("--autoscale", "2,8").autoscale == (8, 2)


@pytest.mark.parametrize(
    "flags", ["-c many", "-P fibers", "--autoscale x", "--time-limit 0", "--max-tasks-per-child 0", "-l loud", "--nonsense"]
)
def test_nonsense_is_refused(project: Path, run: Run, started: list[WorkerOptions], flags: str) -> None:
    result = run("-A", "proj", "worker", *flags.split())
    assert (result.exit_code, started) == (2, [])


def test_flags_without_meaning_are_accepted_with_a_line_each(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    flags = "-O fair --prefetch-multiplier 1 --without-mingle --without-gossip --without-heartbeat --heartbeat-interval 5 -S state --disable-prefetch"
    result = run("-A", "proj", "worker", *flags.split())
    assert result.exit_code == 0 and len(started) == 1
    for flag in ("-O:", "--prefetch-multiplier:", "--without-mingle:", "--without-gossip:", "--without-heartbeat:", "--statedb:"):
        assert flag in result.stderr
    assert run("-q", "-A", "proj", "worker", *flags.split()).output == ""


def test_a_worker_may_be_a_beat_too(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    result = run("-A", "proj", "worker", *"-B -s schedule --scheduler some.where:Scheduler".split())
    assert (result.exit_code, started[0].beat) == (0, True)
    assert "no file is needed" in result.stderr and "no other scheduler is used" in result.stderr


@pytest.mark.parametrize("flags", ["-P custom", "--reload --detach"])
def test_what_is_not_there_is_refused_in_one_line(project: Path, run: Run, started: list[WorkerOptions], flags: str) -> None:
    result = run("-A", "proj", "worker", *flags.split())
    assert (result.exit_code, started) == (64, [])
    assert len(result.stderr.splitlines()) == 1


def test_banner(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    result = run("-A", "proj", "-C", "worker", "-c", "3", "-Q", "high,low", "-n", "w1@host")
    for line in (
        "w1@host v",
        "[config]",
        ".> app:         proj (proj)",
        ".> concurrency: 3 (prefork)",
        "[queues]\n.> high\n.> low",
        "  . shop.pay",
    ):
        assert line in result.stdout
    assert f"sqlite:///{project}/engine.db" in result.stdout


def test_banner_masks_passwords(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    from celeriac.cli.banner import mask_url

    assert "secret" not in mask_url("redis://user:secret@host/0")


def test_an_app_is_needed(folder: Path, run: Run, started: list[WorkerOptions]) -> None:
    result = run("-b", f"sqlite:///{folder}/x.db", "worker")
    assert (result.exit_code, started) == (2, [])


def test_live_pidfile_refuses_with_73(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    file = project / "w.pid"
    file.write_text(f"{os.getppid()}\n")
    result = run("-A", "proj", "worker", f"--pidfile={file}")
    assert (result.exit_code, started) == (73, [])
    assert str(os.getppid()) in result.stderr
    file.write_text("999999999\n")
    assert run("-A", "proj", "worker", f"--pidfile={file}").exit_code == 0
    assert not file.exists()


def test_unwritable_logfile(project: Path, run: Run, started: list[WorkerOptions]) -> None:
    result = run("-A", "proj", "worker", "-f", "/nowhere/at/all.log")
    assert (result.exit_code, started) == (73, [])
    assert "/nowhere/at/all.log" in result.stderr
