"""Random workflows: what workers make of one, what eager mode makes of it, and what a plain recursive reading says, is the same, and each task has run as often."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriac import Celeriac, Signature, chain, chord, group, maybe_signature
from celeriac.tasks import registry
from celeriac.worker.inline import InlineWorker

Tree = tuple[Any, ...]
"""("task", number, immutable) · ("boom", number) · ("chain", trees, with_operator) · ("group", trees) · ("chord", trees, body)"""


class Boom(Exception):
    pass


# -- the plain reading ------------------------------------------------------------------------------------------------


def digest(number: int, args: tuple[Any, ...]) -> str:
    return f"{number}-{crc32(json.dumps(args).encode())}"


class Reading:
    """What a tree means, and which tasks run for it."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def value(self, tree: Tree, args: tuple[Any, ...]) -> Any:
        match tree:
            case ("task", number, immutable):
                self.ran.append(number)
                return digest(number, (number,) if immutable else (*args, number))
            case ("boom", number):
                self.ran.append(number)
                raise Boom
            case ("chain", steps, _):
                for step in steps:
                    args = (self.value(step, args),)
                return args[0]
            case ("group", _):
                return self.values(tree, args)
            case ("chord", header, body):
                return self.value(body, (self.values(("group", header), args),))
        raise AssertionError(tree)

    def values(self, tree: Tree, args: tuple[Any, ...]) -> list[Any]:
        """All members of a group run, also when one fails."""
        values, failed = [], False
        for member in members_of(tree):
            try:
                values.append(self.value(member, args))
            except Boom:
                failed = True
        if failed:
            raise Boom
        return values


def members_of(tree: Tree) -> Iterator[Tree]:
    for member in tree[1]:
        if member[0] == "group":
            yield from members_of(member)
        else:
            yield member


# -- the trees -----------------------------------------------------------------------------------------------------------

numbers = st.integers(1, 9)
tasks = st.tuples(st.just("task"), numbers, st.sampled_from([False, False, False, True]))
booms = st.tuples(st.just("boom"), numbers)


def larger(trees: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    few = st.lists(trees, max_size=3)
    return st.one_of(
        st.tuples(st.just("chain"), st.lists(trees, min_size=1, max_size=4), st.booleans()),
        st.tuples(st.just("group"), few),
        st.tuples(st.just("chord"), few, trees),
    )


sound_trees = st.recursive(tasks, larger, max_leaves=12)
trees = st.recursive(st.one_of(tasks, tasks, tasks, tasks, booms), larger, max_leaves=12)


# -- what we make of them ----------------------------------------------------------------------------------------------------


class Lab:
    def __init__(self) -> None:
        self.app = Celeriac("proj", broker="memory://", set_as_current=False)
        self.ran: list[int] = []

        @self.app.task(name="work")
        def work(*args: Any) -> str:
            self.ran.append(args[-1])
            return digest(args[-1], args)

        @self.app.task(name="boom")
        def boom(*args: Any) -> None:
            self.ran.append(args[-1])
            raise Boom

        self.work, self.boom = work, boom

    def signature(self, tree: Tree) -> Signature[Any]:
        match tree:
            case ("task", number, immutable):
                return self.work.si(number) if immutable else self.work.s(number)
            case ("boom", number):
                return self.boom.s(number)
            case ("chain", steps, with_operator):
                parts = [self.signature(step) for step in steps]
                return reduce(or_, parts) if with_operator and len(parts) > 1 else chain(parts, app=self.app)
            case ("group", members):
                return group([self.signature(member) for member in members], app=self.app)
            case ("chord", header, body):
                return chord([self.signature(member) for member in header], self.signature(body), app=self.app)
        raise AssertionError(tree)

    def by_workers(self, signature: Signature[Any]) -> tuple[Any, list[int]]:
        self.ran.clear()
        with InlineWorker(self.app) as worker:
            result = signature.apply_async()
            worker.run()
            value = outcome(result)
            assert not worker.enqueued()
            assert not worker.engine._storage.joins, "a join is left behind"
        return value, sorted(self.ran)

    def eagerly(self, signature: Signature[Any]) -> tuple[Any, list[int]]:
        self.ran.clear()
        value = outcome(signature.apply())
        return value, sorted(self.ran)


def outcome(result: Any) -> Any:
    try:
        return result.get(timeout=0.0)
    except Boom:
        return Boom
    except Exception as error:
        return repr(error)


def read(tree: Tree) -> tuple[Any, list[int]]:
    reading = Reading()
    try:
        value = reading.value(tree, ())
    except Boom:
        value = Boom
    return value, sorted(reading.ran)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    before = registry.current.app
    logging.getLogger("celeriac").setLevel(logging.CRITICAL)
    lab = Lab()
    yield lab
    lab.app.close()
    logging.getLogger("celeriac").setLevel(logging.NOTSET)
    registry.set_default_app(before)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(tree=sound_trees, through_json=st.booleans())
def test_workers_eager_mode_and_a_plain_reading_agree(lab: Lab, tree: Tree, through_json: bool) -> None:
    signature = lab.signature(tree)
    if through_json:
        signature = maybe_signature(json.loads(json.dumps(signature)), app=lab.app)
    expected = read(tree)
    assert lab.by_workers(signature) == expected
    assert lab.eagerly(signature) == expected
    assert lab.by_workers(signature) == expected, "a signature can be sent again"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_they_agree_when_tasks_fail(lab: Lab, tree: Tree) -> None:
    signature = lab.signature(tree)
    expected = read(tree)
    assert lab.by_workers(signature) == expected
    assert lab.eagerly(signature) == expected


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(tree=sound_trees)
def test_a_frozen_signature_has_the_ids_that_it_was_given(lab: Lab, tree: Tree) -> None:
    signature = lab.signature(tree)
    frozen = signature.freeze()
    with InlineWorker(lab.app) as worker:
        sent = signature.apply_async()
        worker.run()
        assert sent == frozen
        assert outcome(lab.app.AsyncResult(sent.id) if not hasattr(frozen, "results") else frozen) == read(tree)[0]
