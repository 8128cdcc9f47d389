"""What a process does when the engine did what it was asked, and the answer was lost on its way."""

from __future__ import annotations

import os

import pytest

from celeriac import Celeriac
from celeriac.contracts.mailbox import Node
from celeriac.core.message import Holder
from celeriac.engines.memory import MemoryEngine
from celeriac.exceptions import Reject
from celeriac.testing import FaultyEngine
from celeriac.worker import worker as worker_module
from celeriac.worker.executor import Executor
from celeriac.worker.slots import Page
from celeriac.worker.worker import Settler, Worker


@pytest.fixture
def page():
    page = Page.create(places=1)
    yield page
    page.close()


@pytest.mark.parametrize("fail_at", range(1, 8))
def test_no_reservation_is_overlooked(page: Page, monkeypatch: pytest.MonkeyPatch, fail_at: int):
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.0)
    app = Celeriac("proj", broker="memory://")
    runs: list[int] = []

    @app.task
    def note(number: int) -> int:
        runs.append(number)
        if number == 4:
            page.stop()
        return number

    engine = MemoryEngine("memory://")
    faulty = FaultyEngine(engine, fail_at=fail_at, when="after", verbs={"exchange", "settle", "held"})
    with app.with_engine(engine):
        results = [note.delay(number) for number in range(5)]
        engine.register(Node(id="node", name="celeriac@here"), lease_seconds=60.0)
        executor = Executor(
            tasks=app.tasks, broker=faulty, backend=faulty, producer=app.producer, settings=app.settings, hostname="celeriac@here"
        )
        settler = Settler(faulty, faulty, together=True)
        worker = Worker(
            settler=settler, executor=executor, page=page, holder=Holder("node", 1), queues=["celery"], supervisor_pid=os.getppid()
        )
        assert worker.run() == worker_module.EXIT_OK
        assert [result.get(timeout=1) for result in results] == [0, 1, 2, 3, 4]
        assert runs == [0, 1, 2, 3, 4]
        assert engine.held("node") == []


def test_a_rejected_task_has_a_result_and_a_dead_letter():
    from celeriac.worker.inline import InlineWorker

    app = Celeriac("proj", broker="memory://")

    @app.task(name="refuse")
    def refuse() -> None:
        raise Reject("not today")

    with InlineWorker(app) as worker:
        result = refuse.delay()
        worker.run()
        assert result.state == "FAILURE"
        assert isinstance(result.result, Reject)
        assert [dead.reason for dead in worker.engine.peek("celery", state="dead")] == ["not today"]
