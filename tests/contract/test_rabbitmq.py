"""The RabbitMQ engine is a correct engine, but for what its capabilities say."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.engines import rabbitmq_lines
from celeriac.engines import rabbitmq_wire as wire
from celeriac.engines.rabbitmq import RabbitMQEngine
from celeriac.testing.contract import EngineContract, EngineMaker
from celeriac.testing.contract.declared import declared
from celeriac.testing.contract.harness import eventually
from tests.support.rabbitmq import Server, half_closed

SERVER_URL = os.environ.get("CELERIAC_TEST_RABBITMQ_URL")
QUEUE_DELETE, QUEUE_DELETE_OK = 0x00320028, 0x00320029


class RabbitMQMaker:
    """A prefix of its own for each test, over one server."""

    capabilities = RabbitMQEngine.capabilities

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"test-{uuid.uuid4()}."

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        engine = RabbitMQEngine(self.url, clock=clock, name_prefix=self.prefix, **options)
        return declared(engine, storage=self.prefix, clock=clock)

    def corrupt(self, engine: Engine, id: str) -> None:
        pytest.skip("nobody can reach one message among those that wait")

    def lose_registration(self, engine: Engine, node: str) -> None:
        engine._engine._intake.nodes.pop(node)  # type: ignore[attr-defined]
        engine._engine._note_gone(node)  # type: ignore[attr-defined]

    def after_kill(self) -> None:
        """RabbitMQ gives back what a connection held as soon as it notices its end, and closes its own end of it."""
        port = wire.Address.parse(self.url)[0].port
        eventually(lambda: not half_closed(port))


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    if SERVER_URL:
        yield SERVER_URL
        return
    server = Server()
    try:
        yield server.url
    finally:
        server.stop()


class TestRabbitMQEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineMaker]:
        monkeypatch.setattr(rabbitmq_lines, "CONNECT_SECONDS", 60.0)  # a worker would try again
        maker = RabbitMQMaker(server_url)
        yield maker
        remove_all(maker)


def remove_all(maker: RabbitMQMaker) -> None:
    """Thousands of queues would slow the server down."""
    engine = RabbitMQEngine(maker.url, name_prefix=maker.prefix)
    topology = engine._topology
    names = [topology.own("notes"), topology.own("nodes")]
    for queue in engine._notes()[1]:
        names += [topology.queue(queue), topology.returned(queue), topology.dead(queue)]
    deadline = time.monotonic() + 60
    with engine._sender.link(deadline) as link:
        for name in names:
            with suppress(wire.Refused):
                delete = wire.frame(2, QUEUE_DELETE, b"\x00\x00" + wire.shortstr(name) + b"\x00")
                link.risk(delete, QUEUE_DELETE_OK, deadline)
    engine.close()
