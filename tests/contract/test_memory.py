"""The memory engine is a correct engine."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.engines.memory import MemoryEngine
from celeriac.testing.contract import EngineContract, EngineMaker


class MemoryMaker:
    capabilities = MemoryEngine.capabilities

    def __init__(self) -> None:
        self.url = f"memory://{uuid.uuid4()}"
        self.storage = MemoryEngine(self.url)  # keeps it while the test runs

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        return MemoryEngine(self.url, clock=clock, **options)

    def corrupt(self, engine: Engine, id: str) -> None:
        self.storage._storage.rows[id].body = b'{"id": "' + id.encode() + b'", "task'

    def after_kill(self) -> None: ...

    def lose_registration(self, engine: Engine, node: str) -> None:
        del self.storage._storage.nodes[node]


class TestMemoryEngine(EngineContract):
    @pytest.fixture
    def make_engine(self) -> EngineMaker:
        return MemoryMaker()


def test_without_a_name_each_has_its_own_storage() -> None:
    one, two = MemoryEngine("memory://"), MemoryEngine("memory://")
    one.pause(["celery"], by="anna")
    assert (one.queues(), two.queues()) == (["celery"], [])


def test_a_name_is_free_again_when_nobody_uses_it() -> None:
    url = f"memory://{uuid.uuid4()}"
    one = MemoryEngine(url)
    one.pause(["celery"], by="anna")
    assert MemoryEngine(url).queues() == ["celery"]
    del one
    assert MemoryEngine(url).queues() == []
