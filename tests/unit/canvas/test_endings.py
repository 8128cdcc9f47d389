"""However a member of a chord ends, the chord ends: its body runs once, or its errback does. And nothing of it is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw, structs

from celeriac import Celeriac, Signature, Task, chain, chord, group
from celeriac.core.errors import ChordError, Ignore, Reject
from celeriac.core.message import Holder, Record, Settlement, Verdict
from celeriac.worker.inline import InlineWorker


class Shop:
    """Tasks that end in every way, and what has run."""

    def __init__(self, app: Celeriac) -> None:
        self.app = app
        self.ran: list[str] = []
        self.bodies: list[Any] = []
        self.errors: list[Any] = []

        @app.task
        def ok(value: int) -> int:
            return value

        @app.task
        def boom(*args: Any) -> None:
            raise ValueError("boom")

        @app.task(bind=True, max_retries=3)
        def flaky(self: Task[..., Any], value: int) -> int:
            if self.request.retries < 2:
                raise self.retry(countdown=5)
            return value

        @app.task
        def ignored(value: int) -> None:
            raise Ignore

        @app.task
        def rejected(value: int) -> None:
            raise Reject("not today")

        @app.task(ignore_result=True)
        def silent(value: int) -> int:
            return value

        @app.task(bind=True)
        def replaced(self: Task[..., Any], value: int) -> Any:
            return self.replace(chain(ok.s(value), ok.s()))

        @app.task(bind=True)
        def replaced_by_group(self: Task[..., Any], value: int) -> Any:
            return self.replace(group(ok.s(value), ok.s(value)))

        @app.task(bind=True)
        def replaced_by_chord(self: Task[..., Any], value: int) -> Any:
            return self.replace(chord([ok.s(value), ok.s(value)], first.s()))

        @app.task(bind=True)
        def replaced_by_failure(self: Task[..., Any], value: int) -> Any:
            return self.replace(group(ok.s(value), boom.s(value)))

        @app.task(bind=True)
        def adding(self: Task[..., Any], value: int) -> int:
            self.add_to_chord(ok.s(value + 100))
            self.add_to_chord(ok.s(value + 200))
            return value

        @app.task(acks_late=False)
        def once(value: int) -> int:
            self.ran.append("once")
            return value

        @app.task
        def first(values: list[Any]) -> Any:
            return values[0]

        @app.task
        def body(values: Any) -> Any:
            self.bodies.append(values)
            return values

        @app.task
        def errback(request: Any, error: Any, traceback: Any) -> None:
            self.errors.append((request.task, error))

        self.ok, self.boom, self.flaky, self.ignored, self.rejected, self.silent = ok, boom, flaky, ignored, rejected, silent
        self.replaced, self.replaced_by_group, self.replaced_by_chord = replaced, replaced_by_group, replaced_by_chord
        self.replaced_by_failure, self.adding, self.once, self.first = replaced_by_failure, adding, once, first
        self.body, self.errback = body, errback

    def elsewhere(self, value: int) -> Signature[Any]:
        return self.app.signature("elsewhere.task", (value,))


@pytest.fixture
def shop(app: Celeriac) -> Shop:
    return Shop(app)


@pytest.fixture
def worker(shop: Shop) -> Iterator[InlineWorker]:
    with InlineWorker(shop.app) as worker:
        yield worker


FAILED = "the body does not run"

endings: dict[str, tuple[Callable[[Shop], Signature[Any]], Any]] = {
    "succeeds": (lambda shop: shop.ok.s(7), 7),
    "raises": (lambda shop: shop.boom.s(), FAILED),
    "retries first": (lambda shop: shop.flaky.s(7), 7),
    "is ignored": (lambda shop: shop.ignored.s(7), None),
    "is rejected": (lambda shop: shop.rejected.s(7), FAILED),
    "wants no result": (lambda shop: shop.silent.s(7), 7),
    "expires": (lambda shop: shop.ok.s(7).set(expires=datetime(2020, 1, 1, tzinfo=UTC)), FAILED),
    "is unknown": (lambda shop: shop.elsewhere(7), FAILED),
    "replaces itself": (lambda shop: shop.replaced.s(7), 7),
    "replaces itself by a group": (lambda shop: shop.replaced_by_group.s(7), [7, 7]),
    "replaces itself by a chord": (lambda shop: shop.replaced_by_chord.s(7), 7),
    "replaces itself by what fails": (lambda shop: shop.replaced_by_failure.s(7), FAILED),
    "is a chain": (lambda shop: chain(shop.ok.s(7), shop.ok.s(), shop.ok.s()), 7),
    "is a chain that fails": (lambda shop: chain(shop.ok.s(7), shop.boom.s(), shop.ok.s()), FAILED),
    "is a chain that ends in a group": (lambda shop: chain(shop.ok.s(7), group(shop.ok.s(), shop.ok.s())), [7, 7]),
    "is a chord": (lambda shop: chord([shop.ok.s(7)], shop.first.s()), 7),
    "is a chord that fails": (lambda shop: chord([shop.boom.s()], shop.first.s()), FAILED),
    "is a chord without a header": (lambda shop: chord([], shop.body.s()), []),
    "asks to run at most once": (lambda shop: shop.once.s(7), 7),
    "is map": (lambda shop: shop.ok.map([1, 2]), [1, 2]),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("ending", endings)
def test_a_member_ends_and_the_chord_ends(shop: Shop, worker: InlineWorker, ending: str, size: int) -> None:
    make, value = endings[ending]
    header = [make(shop), *(shop.ok.s(number) for number in range(1, size))]
    result = chord(header, shop.body.s().on_error(shop.errback.s())).apply_async()
    worker.run_all()
    if value is FAILED:
        assert shop.bodies == ([[]] if "without" in ending else [])
        ((task, error),) = shop.errors
        assert (task, type(error)) == (shop.body.name, ChordError)
        assert result.state == "FAILURE" and isinstance(result.result, ChordError)
    else:
        assert shop.bodies[-1] == [value, *range(1, size)]
        assert shop.errors == []
        assert result.get(timeout=0) == [value, *range(1, size)]
    assert_nothing_is_left(worker)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("ending", [name for name in endings if name not in ("expires", "is unknown", "asks to run at most once")])
def test_eager_mode_ends_it_in_the_same_way(shop: Shop, ending: str, always: bool) -> None:
    make, value = endings[ending]
    whole = chord([make(shop), shop.ok.s(1)], shop.body.s().on_error(shop.errback.s()))
    shop.app.conf.task_always_eager = always
    result = whole.apply_async() if always else whole.apply()
    if value is FAILED:
        assert shop.bodies == []
        assert [(task, type(error)) for task, error in shop.errors] == [(shop.body.name, ChordError)]
        assert result.state == "FAILURE"
    else:
        assert result.get() == shop.bodies[-1] == [value, 1]
        assert shop.errors == []


def test_members_are_added_in_eager_mode_too(shop: Shop) -> None:
    assert chord([shop.adding.s(1), shop.ok.s(2), shop.adding.s(3)], shop.body.s()).apply().get() == [1, 2, 3, 101, 201, 103, 203]
    with pytest.raises(ValueError, match="not in the header"):
        shop.adding.apply((1,)).get()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_revoked_member_ends_it(shop: Shop, worker: InlineWorker, position: int) -> None:
    result = chord([shop.ok.s(number) for number in range(3)], shop.body.s().on_error(shop.errback.s())).apply_async()
    result.parent[position].revoke()
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "revoked" in repr(result.result)
    assert_nothing_is_left(worker)


def test_a_chain_revoked_while_it_waits_ends_it_and_tells_its_later_steps(shop: Shop, worker: InlineWorker) -> None:
    member = chain(shop.ok.s(1), shop.ok.s(), shop.ok.s())
    last = member.freeze()
    chord([member, shop.ok.s(2)], shop.body.s().on_error(shop.errback.s())).apply_async()
    last.parent.parent.revoke()
    worker.run_all()
    assert len(shop.errors) == 1
    assert last.state == "REVOKED"
    assert_nothing_is_left(worker)


def test_a_step_revoked_before_it_comes_ends_it(shop: Shop, worker: InlineWorker) -> None:
    member = chain(shop.ok.s(1), shop.ok.s())
    last = member.freeze()
    chord([member, shop.ok.s(2)], shop.body.s().on_error(shop.errback.s())).apply_async()
    last.revoke()
    worker.run_all()
    assert (last.state, len(shop.errors)) == ("REVOKED", 1)
    assert_nothing_is_left(worker)


def test_a_poisonous_member_ends_it(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.ok.s(1), shop.ok.s(2).set(queue="poison")], shop.body.s().on_error(shop.errback.s())).apply_async()
    for _ in range(3):
        crash(worker, "poison")
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "died 3 times" in repr(result.result)
    assert [waiting.id for waiting in worker.engine.peek("poison", state="dead")] == [result.parent[1].id]
    assert not worker.engine._storage.joins


def test_a_member_that_was_killed_for_its_time_limit_ends_it(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.ok.s(1), shop.ok.s(2).set(queue="slow")], shop.body.s().on_error(shop.errback.s())).apply_async()
    (delivery,) = worker.engine.reserve(["slow"], limit=1, holder=worker._holder)
    assert delivery.message is not None
    doom = {"exc_type": "TimeLimitExceeded", "exc_message": [2], "exc_module": "celery.exceptions"}
    doomed = structs.replace(delivery.message, doom=doom)
    worker.engine.settle(
        [Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt, message=doomed)]
    )
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "TimeLimitExceeded" in repr(result.result)
    assert_nothing_is_left(worker)


def test_a_member_that_may_run_once_and_was_lost_ends_it(shop: Shop, worker: InlineWorker) -> None:
    """Its worker dies while it runs: it does not run again, and whoever waits for it is told."""
    result = chord([shop.ok.s(1), shop.once.s(2).set(queue="once")], shop.body.s().on_error(shop.errback.s())).apply_async()
    (delivery,) = worker.engine.reserve(["once"], limit=1, holder=worker._holder)
    prepared = worker._executor().prepare(delivery)
    assert isinstance(prepared, tuple), "it would run now"
    worker.engine.settle([Settlement(id=delivery.id, verdict=Verdict.CRASHED, lease=delivery.lease, receipt=delivery.receipt)])
    worker.run_all()
    assert shop.ran == []
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "at most once" in repr(result.result)
    assert_nothing_is_left(worker)


def test_a_member_that_may_run_once_and_had_not_begun_runs(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.once.s(2)], shop.body.s()).apply_async()
    (delivery,) = worker.engine.reserve(["celery"], limit=1, holder=worker._holder)
    worker.engine.settle([Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)])
    worker.run_all()
    assert shop.ran == ["once"] and result.get(timeout=0) == [2]


def test_a_member_with_a_body_that_nobody_can_read_ends_it(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.ok.s(1), shop.ok.s(2).set(queue="torn")], shop.body.s().on_error(shop.errback.s())).apply_async()
    (delivery,) = worker.engine.reserve(["torn"], limit=1, holder=worker._holder)
    assert delivery.message is not None
    torn = structs.replace(delivery.message, body=Raw(b'{"not": "a body"}'))
    worker.engine.settle(
        [Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt, message=torn)]
    )
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "body" in repr(result.result)


def test_what_a_member_adds_comes_after_the_others(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.adding.s(1), shop.ok.s(2), shop.adding.s(3)], shop.body.s()).apply_async()
    worker.run_all()
    assert result.get(timeout=0) == [1, 2, 3, 101, 201, 103, 203]
    assert_nothing_is_left(worker)


def test_adding_outside_of_a_chord_is_refused(shop: Shop, worker: InlineWorker) -> None:
    result = shop.adding.delay(1)
    worker.run_all()
    with pytest.raises(ValueError, match="not in the header of a chord"):
        result.get(timeout=0)


def test_message_count_is_members_and_one(shop: Shop, worker: InlineWorker) -> None:
    chord([shop.ok.s(number) for number in range(20)], shop.body.s()).apply_async()
    assert worker.run_all() == 21


def test_a_body_that_retries_gets_its_results_again(shop: Shop, worker: InlineWorker) -> None:
    tries: list[Any] = []

    @shop.app.task(bind=True, max_retries=3)
    def stubborn(self: Task[..., Any], values: list[int], more: int = 0) -> Any:
        tries.append(values)
        if self.request.retries == 0:
            raise self.retry(countdown=1)
        if self.request.retries == 1:
            raise self.retry(args=([*values, 9],), kwargs={"more": 1}, countdown=1)
        return [values, more]

    result = chord([shop.ok.s(1), shop.ok.s(2)], stubborn.s()).apply_async()
    worker.run_all()
    assert tries == [[1, 2], [1, 2], [1, 2, 9]]
    assert result.get(timeout=0) == [[1, 2, 9], 1]
    assert_nothing_is_left(worker)


def test_a_body_that_acknowledges_early_gets_its_results_again(shop: Shop, worker: InlineWorker) -> None:
    @shop.app.task(bind=True, max_retries=3, acks_late=False)
    def stubborn(self: Task[..., Any], values: list[int]) -> Any:
        if self.request.retries < 2:
            raise self.retry(countdown=1)
        return values

    result = chord([shop.ok.s(1), shop.ok.s(2)], stubborn.s()).apply_async()
    worker.run_all()
    assert result.get(timeout=0) == [1, 2]
    assert_nothing_is_left(worker)


def test_an_immutable_body_waits_and_takes_nothing(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.ok.s(1), shop.ok.s(2)], shop.body.si("own")).apply_async()
    worker.run_all()
    assert result.get(timeout=0) == "own"
    failed = chord([shop.boom.s(), shop.ok.s(2)], shop.body.si("own")).apply_async()
    worker.run_all()
    assert isinstance(failed.result, ChordError)
    assert_nothing_is_left(worker)


def test_a_body_whose_join_is_gone_does_not_run_on_nothing(shop: Shop, worker: InlineWorker) -> None:
    result = chord([shop.ok.s(1)], shop.body.s().on_error(shop.errback.s())).apply_async()
    (delivery,) = worker.engine.reserve(["celery"], limit=1, holder=worker._holder)
    worker.engine.settle([worker._executor().run(delivery)])
    worker.engine._storage.joins.clear()
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert "not kept any more" in repr(result.result)


def test_results_that_cannot_be_stored_fail_the_chord(shop: Shop, worker: InlineWorker) -> None:
    @shop.app.task
    def unserializable() -> Any:
        return object()

    chord([unserializable.s(), shop.ok.s(1)], shop.body.s().on_error(shop.errback.s())).apply_async()
    worker.run_all()
    assert shop.bodies == [] and len(shop.errors) == 1
    assert_nothing_is_left(worker)


# -- errbacks, links ------------------------------------------------------------------------------------------------------------


def test_an_errback_of_a_chain_comes_once_whichever_step_fails(shop: Shop, worker: InlineWorker) -> None:
    for position in range(3):
        shop.errors.clear()
        steps = [shop.ok.s(1), shop.ok.s(), shop.ok.s()]
        steps[position] = shop.boom.s()
        result = chain(*steps).on_error(shop.errback.s()).apply_async()
        worker.run_all()
        assert len(shop.errors) == 1
        with pytest.raises(ValueError, match="boom"):
            result.get(timeout=0)


def test_an_errback_of_a_chain_with_a_chord_comes_once(shop: Shop, worker: InlineWorker) -> None:
    whole = chain(shop.ok.s(1), group(shop.ok.s(), shop.boom.s()), shop.body.s())
    whole.on_error(shop.errback.s()).apply_async()
    worker.run_all()
    assert [task for task, _ in shop.errors] == [shop.body.name]


def test_errbacks_on_headers_are_a_setting(app: Celeriac) -> None:
    app.conf.task_allow_error_cb_on_chord_header = True
    shop = Shop(app)
    with InlineWorker(app) as worker:
        chord([shop.ok.s(1), shop.boom.s()], shop.body.s()).on_error(shop.errback.s()).apply_async()
        worker.run_all()
    assert sorted(task for task, _ in shop.errors) == sorted([shop.boom.name, shop.body.name])


def test_an_old_errback_is_sent_with_the_id(shop: Shop, worker: InlineWorker) -> None:
    seen: list[Any] = []

    @shop.app.task
    def old(task_id: str) -> None:
        seen.append(task_id)

    result = chord([shop.boom.s()], shop.body.s().on_error(old.s())).apply_async()
    worker.run_all()
    assert seen == [result.id]


def test_links_of_whole_workflows(shop: Shop, worker: InlineWorker) -> None:
    chain(shop.ok.s(1), shop.ok.s()).apply_async(link=shop.body.s())
    chord([shop.ok.s(2)], shop.first.s()).apply_async(link=shop.body.s())
    worker.run_all()
    assert sorted(shop.bodies) == [1, 2]
    with pytest.raises(TypeError, match="use a chord"):
        group(shop.ok.s(1)).apply_async(link=shop.body.s())


def test_a_link_may_be_a_workflow(shop: Shop, worker: InlineWorker) -> None:
    shop.ok.apply_async((3,), link=chord([shop.ok.s(), shop.ok.s()], shop.body.s()))
    worker.run_all()
    assert shop.bodies == [[3, 3]]
    assert_nothing_is_left(worker)


# -- replace -------------------------------------------------------------------------------------------------------------------------


def test_a_replacement_has_the_id_the_links_and_the_chain(shop: Shop, worker: InlineWorker) -> None:
    sig = chain(shop.replaced.s(5), shop.ok.s(), shop.body.s())
    result = sig.apply_async()
    worker.run_all()
    assert result.get(timeout=0) == 5
    assert result.parent.parent.get(timeout=0) == 5
    shop.bodies.clear()
    single = shop.replaced_by_group.apply_async((6,), link=shop.body.s())
    worker.run_all()
    assert single.get(timeout=0) == [6, 6] and shop.bodies == [[6, 6]]
    assert_nothing_is_left(worker)


def test_a_replacement_that_fails_calls_the_errbacks(shop: Shop, worker: InlineWorker) -> None:
    result = shop.replaced_by_failure.apply_async((6,), link_error=shop.errback.s())
    worker.run_all()
    assert [type(error) for _, error in shop.errors] == [ChordError]
    assert result.state == "FAILURE"
    assert_nothing_is_left(worker)


def test_later_steps_learn_that_they_will_not_come(shop: Shop, worker: InlineWorker) -> None:
    result = chain(shop.ok.s(1), shop.boom.s(), shop.ok.s(), group(shop.ok.s(), shop.ok.s())).apply_async()
    worker.run_all()
    records = worker.engine.fetch([result.parent.id, *(member.id for member in result)])
    assert [record.status for record in records.values()] == ["FAILURE"] * 3
    assert all(isinstance(record, Record) for record in records.values())


# -- tools -------------------------------------------------------------------------------------------------------------------------


def crash(worker: InlineWorker, queue: str) -> None:
    """The process that has got the next message of this queue dies."""
    (delivery,) = worker.engine.reserve([queue], limit=1, holder=Holder(worker._holder.node, 1))
    worker.engine.settle([Settlement(id=delivery.id, verdict=Verdict.CRASHED, lease=delivery.lease, receipt=delivery.receipt)])


def assert_nothing_is_left(worker: InlineWorker) -> None:
    assert worker.enqueued() == []
    assert not worker.engine._storage.joins
