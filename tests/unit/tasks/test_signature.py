"""Planned calls."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from celeriac import AsyncResult, Celeriac, Signature, Task, maybe_signature, signature
from celeriac.core.errors import NotRegistered
from celeriac.core.serialize import decode_body, decode_value, encode_value


@pytest.fixture
def add(app: Celeriac) -> Task[..., Any]:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_a_signature_is_a_dict_as_messages_hold_it(add: Task[..., Any]) -> None:
    sig = add.signature((2,), {"y": 3}, countdown=10)
    assert dict(sig) == {
        "task": "add",
        "args": (2,),
        "kwargs": {"y": 3},
        "options": {"countdown": 10},
        "subtask_type": None,
        "immutable": False,
    }
    assert (sig.task, sig.name, sig.args, sig.kwargs, sig.options, sig.immutable) == (
        "add",
        "add",
        (2,),
        {"y": 3},
        {"countdown": 10},
        False,
    )
    assert repr(sig) == "add(2, y=3)"
    assert add.si(1).immutable
    assert add.subtask((1,)) == add.s(1)
    assert decode_value(encode_value(sig))["args"] == [2]


def test_calling_and_sending(app: Celeriac, add: Task[..., Any]) -> None:
    sig = add.s(1)
    assert sig(5) == 6
    assert sig.apply((5,)).get() == 6
    result = sig.delay(7)
    assert isinstance(result, AsyncResult)
    sig.apply_async((8,), countdown=60, queue="q")
    (waiting,) = app.broker.peek("celery")
    assert waiting.message is not None and decode_body(waiting.message)[0] == (7, 1)
    assert app.broker.depth(["q"])["q"].scheduled == 1


def test_an_immutable_one_takes_options_only(add: Task[..., Any]) -> None:
    sig = add.si(1, y=2).clone((9,), {"y": 9}, countdown=5)
    assert (sig.args, sig.kwargs, sig.options) == ((1,), {"y": 2}, {"countdown": 5})


def test_a_clone_is_its_own(add: Task[..., Any]) -> None:
    sig = add.s(1).set(queue="q")
    sig.link(add.s())
    for twin in (sig.clone(), copy.copy(sig), copy.deepcopy(sig)):
        twin.kwargs["y"] = 5
        twin.options["queue"] = "other"
        twin.link(add.s(2))
        assert isinstance(twin, Signature)
    assert (sig.kwargs, sig.options["queue"], len(sig.options["link"])) == ({}, "q", 1)


def test_links(add: Task[..., Any]) -> None:
    sig, callback = add.s(1), add.s(2)
    assert sig.link(callback) is callback
    sig.link(callback)
    assert sig.options["link"] == [callback]
    assert sig.on_error(add.s(3)) is sig
    assert sig.link_error(add.s(4)) == add.s(4)
    assert sig.options["link_error"] == [add.s(3), add.s(4)]
    assert sig.flatten_links() == [sig, callback]


def test_freezing_decides_the_id(app: Celeriac, add: Task[..., Any]) -> None:
    sig = add.s(1, 2)
    result = sig.freeze()
    assert sig.id == result.id == sig.options["task_id"]
    assert sig.freeze().id == result.id
    assert sig.apply_async().id == result.id


def test_by_name(app: Celeriac, add: Task[..., Any]) -> None:
    assert signature("add", (1,)).type is add
    unknown = signature("no.such", (1,), queue="q", app=app)
    unknown.delay()
    assert app.broker.depth(["q"])["q"].ready == 1
    with pytest.raises(NotRegistered, match="no.such"):
        _ = unknown.type
    assert app.signature("add", kwargs={"x": 1}).app is app


def test_from_a_message_and_back(add: Task[..., Any]) -> None:
    data = dict(add.s(1))
    sig = maybe_signature(data)
    assert isinstance(sig, Signature) and sig == data
    assert maybe_signature(None) is None
    assert maybe_signature(sig) is sig
    assert signature(sig) == sig and signature(sig) is not sig
    assert pickle.loads(pickle.dumps(sig)) == sig


def test_types_of_several_register_themselves(add: Task[..., Any]) -> None:
    @Signature.register_type("test-pair")
    class Pair(Signature[Any]):
        pass

    try:
        revived = Signature.from_dict(
            {"task": "pair", "args": [], "kwargs": {}, "options": {}, "subtask_type": "test-pair", "immutable": False}
        )
        assert type(revived) is Pair
    finally:
        del Signature.TYPES["test-pair"]


def test_replace(add: Task[..., Any]) -> None:
    sig = add.s(1).set(queue="q")
    assert (sig.replace(args=(2,)).args, sig.replace(options={}).options, sig.args) == ((2,), {}, (1,))
