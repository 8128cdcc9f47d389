"""Building and publishing messages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac import Celeriac
from celeriac.contracts.broker import Capabilities
from celeriac.core import events
from celeriac.core.errors import EngineCorrupt, EngineUnavailable, EngineUnsure, EnqueueError, Retry
from celeriac.core.message import Message
from celeriac.core.serialize import decode_body
from celeriac.engines.network import FAILURES, Breaker
from celeriac.tasks import producer
from celeriac.tasks.producer import Producer, safe_url, short_repr
from celeriac.tasks.request import Request
from celeriac.testing import FakeClock


class Unreliable:
    """A broker that refuses the first publishes."""

    url = "redis://user:secret@host:6379/0"

    def __init__(self, refusals: int, error: type[Exception] = EngineUnavailable) -> None:
        self.refusals = refusals
        self.error = error
        self.held: list[Message] = []
        self.timeouts: list[float | None] = []

    def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
        self.timeouts.append(timeout_seconds)
        if len(self.timeouts) <= self.refusals:
            raise self.error("connection refused.")
        self.held.extend(messages)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The producer's: only who waits makes time go by."""
    clock = FakeClock()
    monkeypatch.setattr(producer, "time", SimpleNamespace(time=clock.time, monotonic=clock.monotonic, sleep=clock.advance))
    return clock


def producer_for(app: Celeriac, broker: Any) -> Producer:
    app.producer_now = Producer(broker, app.router, app.settings, find_task=app.tasks.get)
    return app.producer_now


@pytest.mark.promise(8)
def test_p8_an_engine_away_is_enqueue_error_within_a_second_that_says_what_to_do(app: Celeriac, clock: FakeClock) -> None:
    @app.task(name="shop.charge")
    def charge() -> None: ...

    broker = Unreliable(refusals=1000)
    producer_for(app, broker)
    started = clock.monotonic()
    with pytest.raises(EnqueueError) as caught:
        charge.apply_async(task_id="id-1", retry_policy={"max_retries": None, "interval_step": 0.3})
    assert 0.5 < clock.monotonic() - started <= 1.0
    assert (caught.value.task_name, caught.value.task_id, caught.value.unsure) == ("shop.charge", "id-1", False)
    for part in ("shop.charge[id-1]", "in no queue", "connection refused", "redis://user:**@host:6379/0", "broker_publish_timeout"):
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, EngineUnavailable)


@pytest.mark.promise(8)
def test_p8_an_engine_that_does_not_answer_gets_all_tries_in_one_timeout(app: Celeriac, clock: FakeClock) -> None:
    class Silent(Unreliable):
        def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
            clock.advance(timeout_seconds or 60)
            super().publish(messages, timeout_seconds=timeout_seconds)

    app.conf.broker_publish_timeout = 0.2

    @app.task
    def f() -> None: ...

    producer_for(app, Silent(refusals=1000))
    started = clock.monotonic()
    with pytest.raises(EnqueueError):
        f.delay()
    assert clock.monotonic() - started == pytest.approx(0.2)


@pytest.mark.promise(8)
def test_p8_an_engine_that_counts_as_away_is_not_waited_for(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    class Guarded(Unreliable):
        breaker = Breaker()

        def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
            self.breaker.check(time.monotonic() + 1)
            try:
                super().publish(messages, timeout_seconds=timeout_seconds)
            except EngineUnavailable as problem:
                self.breaker.failed(str(problem))
                raise

    @app.task
    def f() -> None: ...

    broker = Guarded(refusals=1000)
    producer_for(app, broker)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(EnqueueError):
        f.delay()
    assert len(broker.timeouts) == FAILURES
    assert pauses
    for _ in range(5):
        pauses.clear()
        with pytest.raises(EnqueueError, match="Not tried again now"):
            f.delay()
        assert not pauses
    assert len(broker.timeouts) == FAILURES


@pytest.mark.promise(8)
def test_p8_delay_opens_no_result_backend(app: Celeriac) -> None:
    app.conf.result_backend = "sqlite:////nonexistent/dir/results.db"

    @app.task
    def f() -> None: ...

    f.delay()
    assert app._backend is None


def test_a_short_trouble_is_tried_again(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    broker = Unreliable(refusals=2)
    producer_for(app, broker)
    f.apply_async(retry_policy={"interval_step": 0.01})
    assert len(broker.held) == 1
    assert broker.timeouts[0] == 1.0
    assert all(timeout is not None and timeout <= 1.0 for timeout in broker.timeouts)


@pytest.mark.parametrize(("error", "options"), [(EngineUnavailable, {"retry": False}), (EngineCorrupt, {})])
def test_what_is_not_to_be_tried_again(app: Celeriac, error: type[Exception], options: Any) -> None:
    @app.task
    def f() -> None: ...

    broker = Unreliable(refusals=1, error=error)
    producer_for(app, broker)
    with pytest.raises(EnqueueError):
        f.apply_async(**options)
    assert len(broker.timeouts) == 1


@pytest.mark.parametrize("ids", [True, False], ids=["an engine that knows ids", "one that does not"])
def test_a_call_whose_answer_was_lost_says_that_it_may_have_arrived(app: Celeriac, ids: bool) -> None:
    class Losing(Unreliable):
        capabilities = Capabilities(engine="losing", ids=ids)

        def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
            self.timeouts.append(timeout_seconds)
            if len(self.timeouts) == 1:
                raise EngineUnsure("The answer was lost.", repeatable=ids)
            raise EngineUnavailable("connection refused.")

    @app.task
    def f() -> None: ...

    broker = Losing(refusals=1000)
    producer_for(app, broker)
    with pytest.raises(EnqueueError, match="may or may not be in its queue") as caught:
        f.apply_async(retry_policy={"interval_step": 0.01})
    assert caught.value.unsure
    assert len(broker.timeouts) == (4 if ids else 1), "it is repeated where that is harmless; what the repeats meet proves nothing"
    assert ("with the same task_id" in str(caught.value)) is ids
    assert ("may then run twice" in str(caught.value)) is not ids


def test_send_task_knows_only_the_name(app: Celeriac) -> None:
    result = app.send_task("other.place.task", (1,), {"a": 2}, queue="q", countdown=5)
    (waiting,) = app.broker.peek("q", state="scheduled")
    assert waiting.message is not None
    assert (waiting.message.id, waiting.message.task) == (result.id, "other.place.task")


# -- signals ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def published() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    seen: list[tuple[str, dict[str, Any]]] = []

    def before(sender: str, headers: dict[str, Any], body: Any, **more: Any) -> None:
        seen.append(("before", dict(headers)))
        headers["trace-id"] = "abc"
        headers["shadow"] = "renamed"

    def after(sender: str, headers: dict[str, Any], **more: Any) -> None:
        seen.append(("after", dict(headers)))

    events.before_task_publish.connect(before)
    events.after_task_publish.connect(after)
    yield seen
    events.before_task_publish.disconnect(before)
    events.after_task_publish.disconnect(after)


def test_receivers_of_before_task_publish_may_add_headers(app: Celeriac, published: list[tuple[str, dict[str, Any]]]) -> None:
    @app.task
    def f(x: int) -> None: ...

    f.apply_async((1,), headers={"own": 1}, time_limit=9)
    (waiting,) = app.broker.peek("celery")
    assert waiting.message is not None
    assert waiting.message.headers == {"own": 1, "trace-id": "abc"}
    assert waiting.message.shadow == "renamed"
    assert [when for when, _ in published] == ["before", "after"]
    assert published[0][1]["timelimit"] == [9, None]
    assert published[1][1]["trace-id"] == "abc"


# -- follow-ups and retries --------------------------------------------------------------------------------------------------------


def request_for(message: Message) -> Request:
    args, kwargs, embed = decode_body(message)
    return Request(message, args, kwargs, embed, hostname="w")


def test_a_retry_is_the_same_call_once_more(app: Celeriac) -> None:
    @app.task
    def f(x: int) -> None: ...

    producer = app.producer
    first = producer.message(f.name, (1,), {}, task=f, options={"queue": "q", "expires": 100, "link": f.s(), "headers": {"a": 1}})
    again = producer.retry_message(first, Retry(when=60.0), request_for(first))
    assert again.id == first.id
    assert (again.retries, again.delay_seconds, again.queue, again.body, again.expires) == (1, 60.0, "q", first.body, first.expires)
    assert again.headers == {"a": 1}
    at = producer.retry_message(again, Retry(when=datetime(2099, 1, 1)), request_for(again))
    assert (at.retries, at.delay_seconds, at.eta) == (2, None, datetime(2099, 1, 1, tzinfo=UTC))
    now = producer.retry_message(at, Retry(when=0), request_for(at))
    assert (now.delay_seconds, now.eta) == (None, None)


def test_a_retry_may_change_arguments_and_options(app: Celeriac) -> None:
    @app.task
    def f(x: int, y: int = 0) -> None: ...

    producer = app.producer
    first = producer.message(f.name, (1,), {"y": 2}, task=f, options={"queue": "q", "priority": 4, "link": f.s()})
    retry = Retry(when=1, args=[5], options={"queue": "slow", "time_limit": 7, "headers": {"b": 2}})
    again = producer.retry_message(first, retry, request_for(first))
    args, kwargs, embed = decode_body(again)
    assert (args, kwargs) == ((5,), {"y": 2})
    assert embed["callbacks"][0]["task"] == f.name
    assert (again.queue, again.priority, again.time_limit, again.headers) == ("slow", 4, 7, {"b": 2})
    assert again.argsrepr == "(5,)"


def test_children_inherit_the_priority_when_asked_to(app: Celeriac) -> None:
    app.conf.task_inherit_parent_priority = True

    @app.task
    def f() -> None: ...

    parent = request_for(app.producer.message("p", (), {}, options={"priority": 8}))
    for options in ({}, {"queue": "q"}):
        assert app.producer.message(f.name, (), {}, task=f, options=options, parent=parent).priority == 8
    assert app.producer.message(f.name, (), {}, task=f, options={"priority": 1}, parent=parent).priority == 1


def test_a_route_that_is_a_function_is_asked_each_time(app: Celeriac) -> None:
    def by_argument(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
        return {"queue": f"q{args[0]}"}

    app.conf.task_routes = (by_argument,)

    @app.task
    def f(n: int) -> None: ...

    for n in (1, 2):
        f.delay(n)
        assert app.broker.depth([f"q{n}"])[f"q{n}"].ready == 1


# -- texts -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pa:ss@h/0", "redis://:**@h/0"),
        ("amqp://u:p@h//", "amqp://u:**@h//"),
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("amqp://guest@h", "amqp://guest:**@h"),
    ],
)
def test_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    assert safe_url(url) == shown


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=15,
)


@given(values)
def test_a_short_repr_is_the_repr_as_long_as_it_is_small(value: Any) -> None:
    text = short_repr(value, 50)
    assert len(text) <= 1024
    if len(repr(value)) <= 1024:
        assert text == repr(value)
