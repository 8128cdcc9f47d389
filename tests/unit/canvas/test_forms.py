"""What signatures of several tasks look like as data, and what `|` makes of them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from celeriac import Celeriac, Signature, Task, chain, chord, chunks, group, maybe_signature, xmap, xstarmap
from celeriac.core.errors import EnqueueError
from celeriac.core.serialize import decode_body
from celeriac.engines.memory import MemoryEngine
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker.inline import InlineWorker


@pytest.fixture
def add(app: Celeriac) -> Task[..., Any]:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


@pytest.fixture
def total(app: Celeriac) -> Task[..., Any]:
    @app.task(name="total")
    def total(values: list[int], more: int = 0) -> int:
        return sum(values) + more

    return total


ADD = {"task": "add", "args": [1, 2], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}


def as_json(signature: Any) -> Any:
    return json.loads(json.dumps(signature))


def test_the_dicts_are_celerys(add: Task[..., Any], total: Task[..., Any]) -> None:
    body = {**ADD, "task": "total", "args": []}
    assert as_json(group(add.s(1, 2))) == {
        "task": "celery.group", "args": [], "kwargs": {"tasks": [ADD]}, "options": {}, "subtask_type": "group", "immutable": False,
    }  # fmt: skip
    assert as_json(chain(add.s(1, 2), total.s())) == {
        "task": "celery.chain", "args": [], "kwargs": {"tasks": [ADD, body]}, "options": {}, "subtask_type": "chain", "immutable": False,
    }  # fmt: skip
    assert as_json(chord([add.s(1, 2)], total.s())) == {
        "task": "celery.chord", "args": [], "kwargs": {"kwargs": {}, "header": [ADD], "body": body}, "options": {}, "subtask_type": "chord",
        "immutable": False,
    }  # fmt: skip
    plain = {**ADD, "args": []}
    assert as_json(add.starmap([(1, 2)])) == {
        "task": "celery.starmap", "args": [], "kwargs": {"task": plain, "it": [[1, 2]]}, "options": {}, "subtask_type": "xstarmap", "immutable": True,
    }  # fmt: skip
    assert as_json(add.chunks([(1, 2)], 10))["kwargs"] == {"task": plain, "it": [[1, 2]], "n": 10}
    assert as_json(total.map([[1]]))["task"] == "celery.map"


def test_they_come_back_from_json_and_pickle(add: Task[..., Any], total: Task[..., Any]) -> None:
    header = group(add.s(1, 2), chain(add.s(1, 1), add.s(5)))
    for signature in (
        chain(add.s(1, 2), add.s(3)),
        header,
        chord(header, total.s()),
        add.map([1]),
        add.starmap([(1, 2)]),
        add.chunks([(1, 2)], 2),
    ):
        revived = maybe_signature(as_json(signature))
        assert type(revived) is type(signature)
        assert as_json(revived) == as_json(signature)
        assert as_json(pickle.loads(pickle.dumps(signature))) == as_json(signature)
        assert as_json(copy.deepcopy(signature)) == as_json(signature)
        assert as_json(Signature.from_dict(signature)) == as_json(signature)
        assert repr(revived) == repr(signature) or type(signature) in (xstarmap, chunks)


def test_pipes(add: Task[..., Any], total: Task[..., Any]) -> None:
    a, b, c = add.s(1, 1), add.s(2), add.s(3)
    assert (a | b | c).tasks == [a, b, c]
    assert (a | (b | c)).tasks == [a, b, c]
    assert isinstance(a | b, chain)
    upgraded = group(a, a) | total.s()
    assert isinstance(upgraded, chord) and upgraded.tasks == [a, a] and upgraded.body == total.s()
    longer = upgraded | b
    assert isinstance(longer, chord) and longer.body.tasks == [total.s(), b]
    inside = a | group(b, c) | total.s() | b
    assert isinstance(inside, chain) and len(inside.tasks) == 2
    assert isinstance(inside.tasks[1], chord) and inside.tasks[1].body.tasks == [total.s(), b]
    twice = group(a, a) | group(total.s(), total.s()) | total.s()
    assert isinstance(twice, chord) and isinstance(twice.body, chord)
    a |= b
    assert isinstance(a, chain)
    with pytest.raises(TypeError):
        b | 7


def test_constructors(add: Task[..., Any], total: Task[..., Any]) -> None:
    assert group(add.s(1, n) for n in range(3)).tasks == group([add.s(1, n) for n in range(3)]).tasks
    assert group(add.s(1, 1)).tasks == [add.s(1, 1)]
    assert len(group(group(add.s(1, 1), add.s(2, 2)), add.s(3, 3))) == 3
    assert [task.args for task in group(group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)).tasks] == [(1, 1), (2, 2), (3, 3)]
    assert chain([add.s(1, 1), add.s(2)]).tasks == chain(add.s(1, 1), add.s(2)).tasks
    assert chain(add.s(n) for n in range(3)).tasks == [add.s(n) for n in range(3)]
    assert chord(group(add.s(1, 1)), total.s()) == chord([add.s(1, 1)], total.s())
    assert isinstance(add.map([1]), xmap) and isinstance(add.starmap([]), xstarmap) and isinstance(add.chunks([], 1), chunks)
    assert repr(group(add.s(1, 2)) | total.s()) == "chord([add(1, 2)], total())"
    assert repr(add.starmap([(1, 2)])) == "[add(*x) for x in [(1, 2)]]"


def test_what_cannot_be_sent_says_why(add: Task[..., Any], total: Task[..., Any]) -> None:
    with pytest.raises(ValueError, match="empty chain"):
        chain().apply_async()
    with pytest.raises(ValueError, match="without a body"):
        chord([add.s(1, 1)]).apply_async()
    with pytest.raises(TypeError, match="missing"):
        group(add.s(1)).apply_async()
    with pytest.raises(TypeError, match="no option 'cuntdown'"):
        group(add.s(1, 1)).apply_async(cuntdown=3)


def test_partial_arguments_go_to_those_that_start(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    def value(signature: Any, *args: Any, **kwargs: Any) -> Any:
        with InlineWorker(app) as worker:
            result = signature.apply_async(args, kwargs)
            worker.run()
            return result.get(timeout=0)

    assert value(chain(add.s(1), add.s(2)), 10) == 13
    assert value(group(add.s(1), add.s(2), add.si(5, 5)), 10) == [11, 12, 10]
    assert value(chord([add.s(1), add.s(2)], total.s(more=100)), 10) == 123
    assert value(chain(add.s(1), add.s(2)).clone((10,))) == 13
    assert value(group(add.s(1)).clone((10,))) == [11]
    assert value(chord([add.s(1), add.s(2)]).clone((5,)) | total.s()) == 13
    frozen_out = chain(add.s(1, 1), add.s(2))
    frozen_out.set_immutable(True)
    assert value(frozen_out, 99) == 4


def test_a_workflow_that_could_be_sent_in_part_says_so(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    whole = chord([add.s(1, n) for n in range(2500)], total.s())
    for fail_at, words in ((1, "1000 tasks"), (2, "the first 1000 messages have been sent, and the next 1000 could not be")):
        engine = FaultyEngine(MemoryEngine("memory://"), fail_at=fail_at, verbs=["publish"], times=100)
        with app.with_engine(engine), pytest.raises(EnqueueError, match=words):
            whole.apply_async(retry=False)


def test_calling_sends(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    with InlineWorker(app) as worker:
        results = [
            chain(add.s(1), add.s(2))(10),
            group(add.s(1))(10),
            chord([add.s(1, 1)])(total.s()),
            add.chunks([(1, 2)], 5)(),
            group(add.s(1, 1)).delay(),
        ]
        worker.run()
        assert [result.get(timeout=0) for result in results] == [13, [11], 2, [[3]], [2]]


def test_options_of_a_whole(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    def sent(signature: Any, **options: Any) -> list[tuple[str, str, int]]:
        with InlineWorker(app) as worker:
            signature.apply_async(**options)
            first = [(message.task, message.queue, message.priority) for message in worker.enqueued()]
            worker.run_all()
            return first

    assert sent(group(add.s(1, 1), add.s(2, 2)), queue="q", priority=3) == [("add", "q", 3)] * 2
    assert sent(group(add.s(1, 1), add.s(2, 2), queue="q")) == [("add", "q", 0)] * 2
    assert sent(chain(add.s(1, 1), add.s(2)), queue="q") == [("add", "q", 0)]
    assert sent(chain(add.s(1, 1).set(queue="own"), add.s(2))) == [("add", "own", 0)]
    assert sent(add.chunks([(1, 1), (2, 2)], 1), queue="q") == [("celery.starmap", "q", 0)] * 2


def test_a_body_goes_where_its_chord_goes(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    with InlineWorker(app) as worker:
        result = chord([add.s(1, 1)], total.s()).apply_async(queue="q", task_id="mine", countdown=10)
        assert [(message.queue, message.delay_seconds) for message in worker.enqueued()] == [("q", 10)]
        worker.run_all()
        assert result.id == "mine" and result.get(timeout=0) == 2
        assert worker.engine.fetch(["mine"])["mine"].queue == "q"


def test_what_gathers_and_what_maps_goes_where_the_tasks_go(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    app.conf.task_routes = {"add": {"queue": "adders"}}
    with InlineWorker(app) as worker:
        nested = chord([chain(add.s(1, 1), group(add.s(1), add.s(2)))], total.map.__self__.s().set(queue="adders"))
        nested.apply_async()
        add.starmap([(1, 1)]).apply_async()
        chain(add.s(1, 1), add.map([])).apply_async()
        queues = set()
        while worker.enqueued():
            queues |= {message.queue for message in worker.enqueued()}
            worker.run_all()
        assert queues == {"adders"}


def test_members_know_their_group_and_their_root(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    with InlineWorker(app) as worker:
        result = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
        first, second = worker.enqueued()
        assert (first.group, first.group_index, second.group_index) == (result.parent.id, 0, 1)
        assert {first.root_id, second.root_id} == {first.id}
        worker.run_all()
        assert worker.engine.fetch([result.id])[result.id].root_id == first.id


def test_ids_are_decided_by_freeze_and_kept(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    whole = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s())
    frozen = whole.freeze("the-end")
    assert frozen.id == "the-end"
    assert len(frozen.parent) == 2 and frozen.parent.parent.parent is None
    again = maybe_signature(as_json(whole), app=app)
    with InlineWorker(app) as worker:
        result = again.apply_async()
        assert result.as_tuple() == frozen.as_tuple()
        worker.run_all()
        assert result.get(timeout=0) == 7
        assert [member.get(timeout=0) for member in frozen.parent] == [3, 4]


def test_a_task_inside_a_run_is_the_parent(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    @app.task(bind=True, name="sender")
    def sender(self: Task[..., Any]) -> None:
        chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
        group(add.s(1, 1)).apply_async(add_to_parent=False)

    with InlineWorker(app) as worker:
        result = sender.delay()
        worker.run(most=10_000)
        ids = {message.id for message in worker.enqueued()}
        assert not ids
        assert [type(child).__name__ for child in result.children or ()] == ["AsyncResult"]
        assert result.get_leaf() == 6


def test_a_result_in_a_chain_has_the_next_step_as_its_child(app: Celeriac, add: Task[..., Any], total: Task[..., Any]) -> None:
    with InlineWorker(app) as worker:
        result = (add.s(1, 1) | add.s(2) | group(add.s(1), add.s(2)) | total.s()).apply_async()
        worker.run_all()
        first = result.parent.parent.parent
        assert [child.id for child in first.children] == [result.parent.parent.id]
        assert first.get_leaf() == 11


def test_messages_carry_what_comes_after_in_celerys_order(app: Celeriac, add: Task[..., Any]) -> None:
    with InlineWorker(app) as worker:
        chain(add.s(1, 1), add.s(2), add.s(3)).apply_async()
        (message,) = worker.enqueued()
        _, _, embed = decode_body(message)
        assert [step["args"] for step in embed["chain"]] == [[3], [2]]
        assert all(step["options"]["task_id"] for step in embed["chain"])
