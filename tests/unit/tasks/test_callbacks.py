"""link and link_error."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac import Celeriac, Task
from celeriac.core.message import Message
from celeriac.core.serialize import decode_body
from celeriac.tasks.callbacks import follow_ups
from celeriac.tasks.request import Request
from celeriac.tasks.run import call


def ended(app: Celeriac, task: Task[..., Any], *args: Any, **options: Any) -> list[Message]:
    message = app.producer.message(task.name, args, {}, task=task, options=options)
    decoded, kwargs, embed = decode_body(message)
    request = Request(message, decoded, kwargs, embed, hostname="w")
    outcome = call(task, request)
    return follow_ups(task, request, outcome, app.producer).messages


@pytest.fixture
def work(app: Celeriac) -> Task[..., Any]:
    @app.task(name="work")
    def work(x: int) -> int:
        return 10 // x

    return work


def test_callbacks_get_the_result_first(app: Celeriac, work: Task[..., Any]) -> None:
    @app.task(name="note")
    def note(*args: Any) -> None: ...

    messages = ended(app, work, 5, task_id="w", root_id="r", link=[note.s(9), note.si(9), note.s().set(queue="q", task_id="mine")])
    assert [decode_body(message)[0] for message in messages] == [(2, 9), (9,), (2,)]
    assert {(message.parent_id, message.root_id) for message in messages} == {("w", "r")}
    assert (messages[2].queue, messages[2].id) == ("q", "mine")


def test_what_follows_are_children_of_the_task(app: Celeriac, work: Task[..., Any]) -> None:
    message = app.producer.message(work.name, (5,), {}, task=work, options={"link": work.s()})
    request = Request(message, *decode_body(message), hostname="w")
    (follow_up,) = follow_ups(work, request, call(work, request), app.producer).messages
    assert [child.id for child in request.children] == [follow_up.id]


def test_the_ids_of_follow_ups_derive_from_the_parents(app: Celeriac, work: Task[..., Any]) -> None:
    first = ended(app, work, 5, task_id="w", link=[work.s(), work.s()])
    second = ended(app, work, 5, task_id="w", link=[work.s(), work.s()])
    other = ended(app, work, 5, task_id="v", link=[work.s()])
    assert [message.id for message in first] == [message.id for message in second]
    assert len({message.id for message in [*first, *other]}) == 3


def test_a_callback_that_nobody_here_knows_is_sent_all_the_same(app: Celeriac, work: Task[..., Any]) -> None:
    sig = app.signature("elsewhere.task", (1,))
    (message,) = ended(app, work, 5, link=sig)
    assert (message.task, decode_body(message)[0]) == ("elsewhere.task", (2, 1))


def test_a_callback_that_cannot_be_sent_does_not_undo_the_task(
    app: Celeriac, work: Task[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = work.s(), work.s().set(priority=77)
    assert len(ended(app, work, 5, link=[bad, good])) == 1
    assert "cannot be sent" in caplog.text


def test_nothing_follows_a_retry_or_an_ignored_task(app: Celeriac) -> None:
    @app.task(bind=True)
    def again(self: Task[..., Any]) -> None:
        self.retry()

    assert ended(app, again, link=again.s(), link_error=again.s()) == []


# -- errbacks ------------------------------------------------------------------------------------------------------------------


def test_which_errbacks_are_called_and_which_are_sent(app: Celeriac, work: Task[..., Any]) -> None:
    called: list[Any] = []

    @app.task(name="new")
    def new(request: Any, exc: Any, traceback: Any) -> None:
        called.append((request.id, repr(exc), "ZeroDivisionError" in traceback))

    @app.task(name="new_with_partial")
    def new_with_partial(request: Any, exc: Any, traceback: Any, extra: int = 0) -> None:
        called.append(extra)

    @app.task(name="star")
    def star(*args: Any) -> None:
        called.append(len(args))

    @app.task(name="old")
    def old(task_id: str) -> None: ...

    @app.task(name="old_with_stored")
    def old_with_stored(task_id: str, stored: int) -> None: ...

    @app.task(name="bound", bind=True)
    def bound(self: Any, request: Any, exc: Any, traceback: Any) -> None: ...

    class ByClass(Task[..., Any]):
        name = "by_class"

        def run(self, request: Any, exc: Any, traceback: Any) -> None: ...

    by_class = app.register_task(ByClass())
    errbacks = [
        new.s(), new_with_partial.s(extra=5), star.s(), old.s(), old_with_stored.s(7), bound.s(), by_class.s(),
        app.signature("elsewhere"), old.si("fixed"),
    ]  # fmt: skip
    messages = ended(app, work, 0, task_id="w", link_error=errbacks)
    assert called == [("w", "ZeroDivisionError('integer division or modulo by zero')", True), 5, 3]
    assert [(message.task, decode_body(message)[0]) for message in messages] == [
        ("old", ("w",)), ("old_with_stored", ("w", 7)), ("bound", ("w",)), ("by_class", ("w",)), ("elsewhere", ("w",)), ("old", ("fixed",)),
    ]  # fmt: skip


def test_an_errback_that_raises_is_logged(app: Celeriac, work: Task[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    @app.task
    def broken(request: Any, exc: Any, traceback: Any) -> None:
        raise KeyError("in the errback")

    assert ended(app, work, 0, link_error=broken.s()) == []
    assert "in the errback" in caplog.text
