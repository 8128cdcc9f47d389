"""A worker's parts over an engine in memory, on a clock that stands still: what the tests of this folder work with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celeriac import Celeriac
from celeriac.contracts.mailbox import Node
from celeriac.core.message import Delivery, Holder, Message, Record, Settlement
from celeriac.engines.memory import MemoryEngine
from celeriac.tasks import registry
from celeriac.testing.clock import FakeClock
from celeriac.worker.executor import Executor
from celeriac.worker.plan import Plan
from celeriac.worker.slots import Page
from celeriac.worker.worker import Settler

NODE = "node-1"


class Lab:
    """An app, its engine, and one registered node."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.engine = MemoryEngine("memory://", clock=self.clock)
        self.app = Celeriac("proj", broker="memory://", **settings)
        self.holder = Holder(NODE, 1)
        self.engine.register(Node(id=NODE, name="w@h", pid=os.getpid()), lease_seconds=15.0)
        self.settler = Settler(self.engine, self.engine, together=True)

    def executor(self, broker: Any = None, **more: Any) -> Executor:
        engine = broker or self.engine
        return Executor(
            tasks=self.app.tasks,
            broker=engine,
            backend=engine,
            producer=self.app.producer,
            settings=self.app.settings,
            hostname="w@h",
            **more,
        )

    def publish(self, task: Any, *args: Any, **options: Any) -> Message:
        """A call of a task (or of a name), sent."""
        name = task if isinstance(task, str) else task.name
        known = None if isinstance(task, str) else task
        message = self.app.producer.message(name, args, {}, task=known, options=options)
        self.engine.publish([message])
        return message

    def reserve(self, limit: int = 1, process: int = 1) -> list[Delivery]:
        return self.engine.reserve(["celery"], limit=limit, holder=Holder(NODE, process))

    def deliver(self, task: Any, *args: Any, **options: Any) -> Delivery:
        """A call of a task, sent and taken."""
        self.publish(task, *args, **options)
        (delivery,) = self.reserve()
        return delivery

    def run(self, delivery: Delivery, **parts: Any) -> Settlement:
        """Runs a delivery and settles what came of it."""
        settlement = self.executor(**parts).run(delivery)
        self.engine.settle([settlement])
        return settlement

    def crash(self, delivery: Delivery) -> Delivery:
        """Its process dies under it; it is taken again."""
        self.engine.settle([crashed(delivery)])
        (again,) = self.reserve()
        return again

    def record(self, task_id: str) -> Record | None:
        return self.engine.fetch([task_id]).get(task_id)

    def state(self, task_id: str) -> str | None:
        record = self.record(task_id)
        return None if record is None else record.status

    def where(self, task_id: str) -> str | None:
        """ready, scheduled, leased or dead; None when the message is gone."""
        waiting = self.engine.find([task_id]).get(task_id)
        return None if waiting is None else waiting.state

    def page(self, places: int = 1) -> Page:
        return Page.create(places)


def crashed(delivery: Delivery) -> Settlement:
    from celeriac.core.message import Verdict

    return Settlement(id=delivery.id, verdict=Verdict.CRASHED, lease=delivery.lease, receipt=delivery.receipt)


def plan(**more: Any) -> Plan:
    return Plan(
        rates_fd=-1,
        **{"node": NODE, "hostname": "w@h", "process": 1, "supervisor_pid": os.getppid(), "queues": ["celery"], "pool": "prefork", **more},
    )


@contextmanager
def open_lab(**settings: Any) -> Iterator[Lab]:
    before = registry.current.app
    lab = Lab(**settings)
    try:
        with lab.app.with_engine(lab.engine):
            yield lab
    finally:
        lab.app.close()
        registry.set_current_app(None)
        registry.set_default_app(before)


MakeLab = Callable[..., Lab]
