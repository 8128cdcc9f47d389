"""What a test of the suite may ask of an engine: no more than its `Capabilities` say. The rest of the test is skipped, with the reason.

An engine that does everything needs none of this. The author of one that does not lets `make_engine` return `declared(engine)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from ...contracts.engine import Engine
from ...core.clock import SYSTEM_CLOCK
from ...core.message import Message, Settlement, Verdict

_RESULTS = frozenset({"store", "fetch", "forget", "subscribe", "prune"})
_JOINS = frozenset({"seal", "joins", "arrivals", "arrive", "leave"})
_published: dict[str, set[str]] = {}
"""The ids that were published in each storage."""


def declared(engine: Any, *, storage: str, clock: Any = SYSTEM_CLOCK) -> Engine:
    """The engine, and a skip wherever it would be asked for what it does not promise."""
    return cast("Engine", _Declared(engine, storage, clock))


class _Declared:
    def __init__(self, engine: Any, storage: str, clock: Any) -> None:
        self._engine = engine
        self._published = _published.setdefault(storage, set())
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        capabilities = self._engine.capabilities
        if name in _RESULTS and not capabilities.atomic_results:
            _skip("it keeps no results")
        if name in _JOINS and not capabilities.joins:
            _skip("it keeps no joins")
        if name == "schedules" and not hasattr(self._engine, name):
            _skip("it keeps no schedules")
        return getattr(self._engine, name)

    def __reduce__(self) -> Any:
        raise TypeError("An engine does not travel; its maker does.")

    def publish(self, messages: Sequence[Message], **options: Any) -> None:
        if options.get("joins") and not self._engine.capabilities.joins:
            _skip("it keeps no joins")
        self._coming(messages)
        self._engine.publish(messages, **options)

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        self._look_at(settlements)
        return cast("list[str]", self._engine.settle(settlements))

    def exchange(self, settlements: Sequence[Settlement], queues: Sequence[str], **options: Any) -> Any:
        self._look_at(settlements)
        return self._engine.exchange(settlements, queues, **options)

    def find(self, ids: Sequence[str]) -> Any:
        found = self._engine.find(ids)
        if not self._engine.capabilities.ids and any(id in self._published and id not in found for id in ids):
            _skip("it cannot say where one message is that nobody holds")
        return found

    def peek(self, queue: str, *, state: str = "ready", **options: Any) -> Any:
        if not self._engine.capabilities.ids and state in ("ready", "scheduled"):
            _skip("it cannot show what waits")
        return self._engine.peek(queue, state=state, **options)

    def revoke(self, revocations: Any) -> Any:
        answers = self._engine.revoke(revocations)
        if not self._engine.capabilities.ids and any(answer == "unknown" and id in self._published for id, answer in answers.items()):
            _skip("it does not find waiting messages by their ids")
        return answers

    def _look_at(self, settlements: Sequence[Settlement]) -> None:
        capabilities = self._engine.capabilities
        for settlement in settlements:
            if not capabilities.joins and (settlement.opens or settlement.enlarges or settlement.arrival or settlement.leaves):
                _skip("it keeps no joins")
            if settlement.delay_seconds > 0 and self._cannot_be_turned():
                _skip("it waits by a clock that no test can turn")
            coming = settlement.follow_ups + ([settlement.message] if settlement.message is not None else [])
            if settlement.verdict in (Verdict.DONE, Verdict.RETRY) and settlement.lease is not None:
                self._published.discard(settlement.id)
            elif settlement.message is not None:
                coming = settlement.follow_ups
            self._coming(coming)

    def _coming(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if not self._engine.capabilities.ids and message.id in self._published:
                _skip("it does not know that it holds a message of this id")
            late = message.delay_seconds if message.delay_seconds is not None else 0.0
            if message.eta is not None and message.delay_seconds is None:
                late = message.eta.timestamp() - self._clock.time()
            if late > 0 and self._cannot_be_turned():
                _skip("it waits by a clock that no test can turn")
        self._published.update(message.id for message in messages)

    def _cannot_be_turned(self) -> bool:
        return bool(self._engine.capabilities.own_timers) and self._clock is not SYSTEM_CLOCK


def _skip(why: str) -> None:
    pytest.skip(f"not asked of this engine, which says that {why}")
