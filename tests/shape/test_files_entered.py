"""The path of one call is short: one `delay()` enters at most six of our files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import celeriac
from celeriac import Celeriac, shared_task
from celeriac.contracts.mailbox import Node
from celeriac.core.message import Holder
from celeriac.tasks import registry
from celeriac.worker.executor import Executor
from celeriac.worker.slots import Page
from celeriac.worker.worker import Settler, Worker

HOME = str(Path(celeriac.__file__).parent)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = registry.current.app
    monkeypatch.setattr(registry, "_shared", {})
    yield
    registry.set_default_app(before)


def files_entered(function: Any) -> tuple[set[str], int]:
    files: set[str] = set()
    calls = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            files.add(frame.f_code.co_filename[len(HOME) + 1 :])
            calls += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return files, calls


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
@pytest.mark.parametrize("kind", ["app", "shared"])
def test_one_delay_enters_at_most_six_files(engine: str, kind: str, tmp_path: Path) -> None:
    app = Celeriac("proj", broker="memory://" if engine == "memory" else f"sqlite:///{tmp_path}/x.db")
    decorator = app.task if kind == "app" else shared_task

    @decorator
    def add(x: int, y: int) -> int:
        return x + y

    for n in range(3):
        add.delay(n, 2)
    files, calls = files_entered(lambda: add.delay(1, y=2))
    app.close()
    assert files <= {
        "tasks/task.py", "tasks/producer.py", "core/serialize.py", "core/ids.py", "tasks/result.py", f"engines/{engine}.py",
    }  # fmt: skip
    assert len(files) <= 6, files
    assert calls <= 60


def test_one_run_of_a_task_enters_at_most_twelve_files(tmp_path: Path) -> None:
    """From the reservation to the settlement: what a worker's process does for one task."""
    app = Celeriac("proj", broker=f"sqlite:///{tmp_path}/x.db")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    page = Page.create(places=1)
    app.broker.register(Node(id="node", name="celeriac@here"), lease_seconds=60.0)
    executor = Executor(
        tasks=app.tasks, broker=app.broker, backend=app.backend, producer=app.producer, settings=app.settings, hostname="celeriac@here"
    )
    settler = Settler(app.broker, app.backend, together=True)
    worker = Worker(settler=settler, executor=executor, page=page, holder=Holder("node", 1), queues=["celery"], supervisor_pid=os.getppid())

    def run_what_waits() -> None:
        worker._settle(worker._run_batch(worker._exchange([])))

    for n in range(3):
        add.delay(n, 2)
        run_what_waits()
    last = add.delay(40, 2)
    files, _ = files_entered(run_what_waits)
    assert last.get(timeout=1) == 42
    page.close()
    app.close()
    assert len(files) <= 12, files
