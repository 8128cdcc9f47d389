"""Which queue a call goes to."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest

from celeriac.core.errors import ImproperlyConfigured, QueueNotFound
from celeriac.core.routing import Queue, Route, Router, queues_from


def queue_of(router: Router, name: str, **options: Any) -> str:
    return router.route(name, (), {}, options).queue


def by_argument(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
    return {"queue": f"customer-{args[0]}"} if args else None


class Classic:
    def route_for_task(self, name: str, args: Any = None, kwargs: Any = None) -> Any:
        return "classic" if name == "old" else None


ROUTES: list[Any] = [
    {"a.b": "exact", "a.*": {"queue": "glob", "priority": 7}, re.compile(r"(x|y)\..*"): {"queue": "pattern"}},
    [{"a.b": "exact"}, {"a.*": {"queue": "glob", "priority": 7}}, {re.compile(r"(x|y)\..*"): {"queue": "pattern"}}],
    ([("a.b", "exact"), ("a.*", {"queue": "glob", "priority": 7}), (re.compile(r"(x|y)\..*"), "pattern")],),
    [("a.b", "exact"), ("a.*", {"queue": "glob", "priority": 7}), (re.compile(r"(x|y)\..*"), "pattern")],
]


@pytest.mark.parametrize("routes", ROUTES)
def test_forms_of_task_routes(routes: Any) -> None:
    router = Router(routes)
    assert queue_of(router, "a.b") == "exact"
    assert router.route("a.c") == Route("glob", "", "", 7)
    assert queue_of(router, "y.z") == "pattern"
    assert queue_of(router, "other") == "celery"
    assert not router.depends_on_arguments


def test_a_single_pair() -> None:
    assert queue_of(Router(("a.*", "q")), "a.b") == "q"


def test_functions() -> None:
    router = Router((by_argument, {"t": "rest"}))
    assert router.depends_on_arguments
    assert router.route("t", (5,)).queue == "customer-5"
    assert router.route("t", (6,)).queue == "customer-6"
    assert router.route("t").queue == "rest"


@pytest.mark.parametrize("route", [Classic, Classic(), "routes_of_tests.Classic", "routes_of_tests:Classic"])
def test_classes_and_dotted_paths(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("routes_of_tests")
    module.__dict__["Classic"] = Classic
    monkeypatch.setitem(sys.modules, "routes_of_tests", module)
    router = Router(route)
    assert queue_of(router, "old") == "classic" and queue_of(router, "new") == "celery"


def test_a_dotted_path_is_imported_when_it_is_asked() -> None:
    router = Router("no_such_module_here.route")
    with pytest.raises(ImproperlyConfigured, match="'no_such_module_here.route' cannot be imported"):
        router.route("t")


@pytest.mark.parametrize(
    "routes", [5, [5], "queue", {"a": 5}, {5: "a"}, {"a": {"queue": "x", "countdown": 1}}, {"a": {"priority": "high"}}]
)
def test_bad_routes(routes: Any) -> None:
    with pytest.raises(ImproperlyConfigured):
        Router(routes)


def test_a_function_that_answers_nonsense() -> None:
    with pytest.raises(ImproperlyConfigured, match="the route of t is 5"):
        Router(lambda *args, **kwargs: 5).route("t")


def test_the_calls_own_options_go_first() -> None:
    router = Router({"t": {"queue": "route", "priority": 3}}, default_priority=1)
    assert router.route("t", options={"queue": "own"}) == Route("own", "", "", 3)
    assert router.route("t", options={"priority": 9, "queue": None}) == Route("route", "", "", 9)
    assert router.route("other").priority == 1
    assert queue_of(router, "t", queue=Queue("object")) == "object"


@pytest.mark.parametrize("priority", [-1, 10, 5.0, "5", True])
def test_priorities_are_0_to_9(priority: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 9"):
        Router().route("t", options={"priority": priority})


def test_routing_keys_lead_where_rabbitmq_would_send_them() -> None:
    queues = queues_from(
        [{"name": "default", "routing_key": "task.#"}, {"name": "feed", "exchange": "media", "routing_key": "feed.*"}, {"name": "mail"}]
    )
    router = Router(default_queue="default", queues=queues)
    assert queue_of(router, "t", routing_key="feed.import") == "feed"
    assert queue_of(router, "t", routing_key="feed.import.fast") == "default"
    assert queue_of(router, "t", routing_key="task") == queue_of(router, "t", routing_key="task.a.b") == "default"
    assert queue_of(router, "t", exchange="media") == "feed"
    assert queue_of(router, "t", routing_key="mail") == "mail"
    assert router.route("t", options={"queue": "feed", "routing_key": "feed.x"}) == Route("feed", "media", "feed.x", 0)
    assert router.queue_names() == ["default", "feed", "mail"] and Router().queue_names() == ["celery"]


def test_defaults_of_the_default_queue() -> None:
    router = Router(default_queue="main", default_exchange="x", default_routing_key="k")
    assert router.route("t") == Route("main", "x", "k", 0)
    assert router.route("t", options={"queue": "other"}) == Route("other", "", "", 0)


def test_missing_queues() -> None:
    router = Router({"t": "maill"}, queues=[Queue("celery"), Queue("mail")], create_missing=False)
    assert queue_of(router, "other") == "celery"
    with pytest.raises(QueueNotFound, match=r"Task t is routed to the queue 'maill', .* Did you mean 'mail'\?"):
        router.route("t")


def test_a_name_is_resolved_once() -> None:
    router = Router({"a.*": "q"})
    assert router.route("a.b", (1,), {}, {}) is router.route("a.b", (2,), {}, {"countdown": 5})


def test_queues_by_any_form() -> None:
    assert queues_from("a") == (Queue("a"),)
    assert queues_from({"a": {"exchange": "x", "queue_arguments": {"x-max": 1}}}) == (
        Queue("a", "x", "", {"queue_arguments": {"x-max": 1}}),
    )
    for bad in (5, [5], [{}], ["a", {"name": "a"}], [{"name": 5}]):
        with pytest.raises(ValueError):
            queues_from(bad)
