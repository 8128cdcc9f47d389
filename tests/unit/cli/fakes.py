"""An app that is only its engine, and workers that only answer letters: enough for whoever asks and explains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celeriac.contracts.mailbox import Letter, Node
from celeriac.core.ids import new_id
from celeriac.core.message import Message
from celeriac.core.serialize import encode_body
from celeriac.core.settings import Settings
from celeriac.engines.memory import MemoryEngine

Answers = dict[str, Callable[..., Any]]


class FakeApp:
    def __init__(self, engine: Any = None, **settings: Any) -> None:
        self.conf = Settings.build(settings)
        self.broker = engine or MemoryEngine()
        self.backend = self.broker
        self.results_with_broker = True


class FakeWorker:
    """A registered node; as a context, it also answers letters in a thread."""

    def __init__(
        self, engine: Any, name: str, *, queues: list[str] | None = None, tasks: list[str] | None = None, **answers: Callable[..., Any]
    ):
        self.engine = engine
        self.node = Node(
            id=new_id(), name=name, pid=4321, queues=queues or ["celery"], tasks=tasks or [], pool="prefork", concurrency=2, version="0"
        )
        self.answers: Answers = {"ping": lambda: {"ok": "pong"}, **answers}
        self.letters: list[Letter] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def register(self, lease_seconds: float = 15.0) -> FakeWorker:
        self.engine.register(self.node, lease_seconds=lease_seconds)
        return self

    def __enter__(self) -> FakeWorker:
        self.register()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self.engine.unregister(self.node.id)

    def _serve(self) -> None:
        while not self._ended.is_set():
            for letter in self.engine.collect(self.node.id, 0.05):
                self.letters.append(letter)
                answer = self.answers.get(letter.method)
                if letter.reply_to is None or answer is None:
                    continue
                reply = Letter(
                    method="reply", arguments={"node": self.node.name, "reply": answer(**letter.arguments)}, ticket=letter.ticket
                )
                self.engine.post([letter.reply_to], reply)


def message(task: str = "shop.pay", **fields: Any) -> Message:
    content_type, body = encode_body((), {}, None)
    return Message(**{"id": new_id(), "task": task, "content_type": content_type, "body": body, **fields})
