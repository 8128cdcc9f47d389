"""The calling side of remote control: Celery's names and shapes, durable where the engine can do it itself."""

from __future__ import annotations

import time
from signal import SIGKILL

import pytest

from celeriac.core.message import Holder
from celeriac.core.serialize import decode_exception
from celeriac.tasks.control import Control, flatten_reply
from tests.unit.cli.fakes import FakeApp, FakeWorker, message


def test_ping_returns_a_list_of_replies_as_soon_as_all_that_live_have_answered() -> None:
    app = FakeApp()
    with FakeWorker(app.broker, "celeriac@a"), FakeWorker(app.broker, "celeriac@b"):
        began = time.monotonic()
        replies = Control(app).ping(timeout=30)
    assert sorted(replies, key=str) == [{"celeriac@a": {"ok": "pong"}}, {"celeriac@b": {"ok": "pong"}}]
    assert time.monotonic() - began < 20


def test_inspect_returns_one_dict() -> None:
    app = FakeApp()
    with FakeWorker(app.broker, "celeriac@a", active=lambda safe: [{"id": "1", "safe": safe}]):
        assert Control(app).inspect(timeout=30).active() == {"celeriac@a": [{"id": "1", "safe": False}]}


def test_inspect_of_one_node_by_name_returns_its_answer_alone() -> None:
    app = FakeApp()
    with FakeWorker(app.broker, "celeriac@a"), FakeWorker(app.broker, "celeriac@b") as other:
        assert Control(app).inspect(destination="celeriac@a", timeout=30).ping() == {"ok": "pong"}
        assert Control(app).inspect(destination=["celeriac@a"], timeout=30).ping() == {"celeriac@a": {"ok": "pong"}}
        assert other.letters == []


def test_nobody_there_is_none_at_once() -> None:
    began = time.monotonic()
    control = Control(FakeApp())
    assert control.inspect(timeout=30).ping() is None
    assert control.ping(timeout=30) == []
    assert time.monotonic() - began < 20


def test_a_silent_node_costs_no_more_than_the_timeout_and_an_expired_one_nothing() -> None:
    app = FakeApp()
    FakeWorker(app.broker, "celeriac@gone").register(lease_seconds=-1)
    began = time.monotonic()
    assert Control(app).ping(timeout=30) == []
    assert time.monotonic() - began < 20
    FakeWorker(app.broker, "celeriac@deaf").register()
    assert Control(app).ping(timeout=0.05) == []


@pytest.mark.parametrize(("pattern", "matcher"), [("*@a", "glob"), (r"@a$", "pcre")])
def test_pattern(pattern: str, matcher: str) -> None:
    app = FakeApp()
    with FakeWorker(app.broker, "celeriac@a"), FakeWorker(app.broker, "celeriac@b"):
        assert Control(app).inspect(pattern=pattern, matcher=matcher, timeout=30).ping() == {"celeriac@a": {"ok": "pong"}}


def test_commands_carry_celerys_arguments_and_return_none_without_reply() -> None:
    app = FakeApp()
    control = Control(app)
    node = FakeWorker(app.broker, "celeriac@a").register().node
    assert control.rate_limit("shop.pay", "10/m") is None
    control.time_limit("shop.pay", soft=1, hard=2)
    control.pool_grow(3)
    control.pool_shrink()
    control.autoscale(max=5, min=1)
    control.add_consumer("mail")
    control.cancel_consumer("mail")
    control.enable_events()
    control.shutdown(destination=["celeriac@a"])
    letters = [(letter.method, letter.arguments, letter.reply_to) for letter in app.broker.collect(node.id)]
    assert letters == [
        ("rate_limit", {"task_name": "shop.pay", "rate_limit": "10/m"}, None),
        ("time_limit", {"task_name": "shop.pay", "soft": 1, "hard": 2}, None),
        ("pool_grow", {"n": 3}, None),
        ("pool_shrink", {"n": 1}, None),
        ("autoscale", {"max": 5, "min": 1}, None),
        ("add_consumer", {"queue": "mail", "exchange": None, "exchange_type": "direct", "routing_key": None}, None),
        ("cancel_consumer", {"queue": "mail"}, None),
        ("enable_events", {}, None),
        ("shutdown", {}, None),
    ]


def test_callback_is_called_for_each_answer() -> None:
    app = FakeApp()
    seen: list[object] = []
    with FakeWorker(app.broker, "celeriac@a"):
        Control(app).broadcast("ping", reply=True, timeout=30, callback=seen.append)
    assert seen == [{"celeriac@a": {"ok": "pong"}}]


def test_revoke_needs_no_worker_and_leaves_a_result() -> None:
    app = FakeApp()
    sent = message(argsrepr="(1,)")
    app.broker.publish([sent])
    assert Control(app).revoke(sent.id) is None
    assert app.broker.find([sent.id]) == {}
    record = app.backend.fetch([sent.id])[sent.id]
    assert (record.status, record.name, record.args) == ("REVOKED", "shop.pay", "(1,)")
    assert decode_exception(record.result).args == ("revoked",)


def test_revoke_by_celerys_shapes() -> None:
    app = FakeApp()
    FakeWorker(app.broker, "celeriac@a").register()
    assert Control(app).revoke(["x", "y"], reply=True) == [{"celeriac@a": {"ok": "tasks x, y flagged as revoked"}}]
    assert Control(app).terminate("x", reply=True) == [{"celeriac@a": {"ok": "terminate: tasks unknown"}}]


def test_terminate_tells_the_node_that_runs_it() -> None:
    app = FakeApp()
    worker = FakeWorker(app.broker, "celeriac@a").register()
    sent = message()
    app.broker.publish([sent])
    app.broker.reserve(["celery"], limit=1, holder=Holder(worker.node.id))
    assert Control(app).terminate(sent.id, signal=SIGKILL, reply=True) == [{"celeriac@a": {"ok": f"terminate: {sent.id}"}}]
    (letter,) = app.broker.collect(worker.node.id)
    assert (letter.method, letter.arguments["signal"]) == ("terminate", "SIGKILL")


def test_revoke_stores_the_result_where_results_live() -> None:
    app = FakeApp()
    app.backend, app.results_with_broker = FakeApp().backend, False
    sent = message()
    app.broker.publish([sent])
    Control(app).revoke(sent.id)
    assert app.backend.fetch([sent.id])[sent.id].status == "REVOKED"


def test_revoke_by_stamped_headers() -> None:
    app = FakeApp()
    marked, plain = message(stamps={"customer": ["7"]}), message()
    app.broker.publish([marked, plain])
    assert Control(app).revoke_by_stamped_headers({"customer": "8"}) is None
    Control(app).revoke_by_stamped_headers({"customer": "7"})
    assert list(app.broker.find([marked.id, plain.id])) == [plain.id]


def test_purge_takes_the_queues_of_the_settings() -> None:
    app = FakeApp(task_queues=["celery", "mail"])
    app.broker.publish([message(), message(queue="mail"), message(queue="other")])
    assert Control(app).purge() == 2
    assert app.broker.queues() == ["other"]


def test_two_answers_under_one_name_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="celeriac@a"):
        assert flatten_reply([{"celeriac@a": 1}, {"celeriac@a": 2}]) == {"celeriac@a": 2}
