"""Calling a task: arguments, options, direct calls, and what a task says of itself."""

from __future__ import annotations

import functools
import pickle
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from celeriac import Celeriac, Task
from celeriac.core.errors import EncodeError, EnqueueError, ImproperlyConfigured
from celeriac.core.message import Message
from celeriac.core.serialize import decode_body


def sent(app: Celeriac, queue: str = "celery") -> list[Message]:
    found = [*app.broker.peek(queue), *app.broker.peek(queue, state="scheduled")]
    return [waiting.message for waiting in found if waiting.message is not None]


def test_delay_holds_the_message_in_the_engine(app: Celeriac) -> None:
    @app.task
    def add(x: int, y: int = 2) -> int:
        return x + y

    result = add.delay(1, y=5)
    (message,) = sent(app)
    assert message.id == result.id
    assert message.task == f"{__name__}.add"
    assert decode_body(message)[:2] == ((1,), {"y": 5})
    assert (message.argsrepr, message.kwargsrepr) == ("(1,)", "{'y': 5}")
    assert message.root_id == message.id
    assert message.parent_id is None
    assert message.origin.startswith("gen") and "@" in message.origin


def test_a_task_stays_callable(app: Celeriac) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    assert add(1, 2) == 3
    assert add.run(1, 2) == 3
    assert add.__name__ == "add"
    assert add.__wrapped__(1, 2) == 3  # type: ignore[attr-defined]


def test_the_name_is_module_dot_function_or_what_is_given(app: Celeriac) -> None:
    @app.task
    def one() -> None: ...

    @app.task(name="my.name")
    def two() -> None: ...

    def three() -> None: ...

    three.__module__ = "__main__"
    assert one.name == f"{__name__}.one"
    assert two.name == "my.name"
    assert app.task(three).name == "proj.three"
    assert repr(two).startswith("<@task: my.name of proj at 0x")


def test_a_function_without_a_name_needs_one(app: Celeriac) -> None:
    partial = functools.partial(print, "x")
    with pytest.raises(TypeError, match="has no name"):
        app.task(partial)
    assert app.task(name="printing")(partial).name == "printing"


# -- the signature is checked at the call ------------------------------------------------------------------------------------


def test_a_call_the_function_would_not_take_is_refused(app: Celeriac) -> None:
    @app.task
    def f(a: int, b: int = 2, *, c: int, d: int = 4) -> None: ...

    f.delay(1, c=3)
    for args, kwargs, complaint in [
        ((), {}, "missing 1 required positional argument: 'a'"),
        ((1, 2, 3), {"c": 1}, "takes from 1 to 2 positional arguments"),
        ((1,), {}, "missing 1 required keyword-only argument: 'c'"),
        ((1,), {"c": 1, "nope": 2}, "unexpected keyword argument 'nope'"),
    ]:
        with pytest.raises(TypeError, match=complaint):
            f.apply_async(args, kwargs)
    assert len(sent(app)) == 1


def test_the_check_knows_positional_only_and_star_arguments(app: Celeriac) -> None:
    @app.task
    def f(a: int, /, b: int = 1, *rest: Any, **more: Any) -> None: ...

    f.delay(1, 2, 3, 4, a=5, z=6)
    with pytest.raises(TypeError):
        f.apply_async((), {"a": 1})


def test_bound_and_class_tasks_do_not_count_self(app: Celeriac) -> None:
    @app.task(bind=True)
    def bound(self: Task[..., Any], x: int) -> None: ...

    class Counter(Task[..., Any]):
        def run(self, x: int) -> int:
            return x

    counter = app.register_task(Counter())
    for task in (bound, counter):
        task.delay(1)
        with pytest.raises(TypeError):
            task.apply_async(())
    assert counter(3) == 3


def test_typing_false_checks_nothing(app: Celeriac) -> None:
    @app.task(typing=False)
    def f(a: int) -> None: ...

    f.apply_async((1, 2, 3))


def test_args_must_be_a_sequence(app: Celeriac) -> None:
    @app.task
    def f(a: Any) -> None: ...

    for wrong in ("abc", 5):
        with pytest.raises(TypeError, match="list or tuple"):
            f.apply_async(wrong)  # type: ignore[arg-type]
    f.apply_async([1])


def test_an_argument_that_cannot_travel_is_named(app: Celeriac) -> None:
    @app.task
    def f(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(EncodeError, match=r"kwargs\['user'\]"):
        f.delay(1, user=object())
    assert sent(app) == []


# -- options -------------------------------------------------------------------------------------------------------------------


def test_countdown_is_the_engines_business_and_eta_its_estimate(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    before = datetime.now(UTC)
    f.apply_async(countdown=60)
    (message,) = sent(app)
    assert message.delay_seconds == 60
    assert message.eta is not None
    assert timedelta(seconds=59) < message.eta - before < timedelta(seconds=70)


@pytest.mark.parametrize("countdown", [0, -5, 0.0])
def test_no_countdown_is_now(app: Celeriac, countdown: float) -> None:
    @app.task
    def f() -> None: ...

    f.apply_async(countdown=countdown)
    (message,) = sent(app)
    assert message.delay_seconds is None
    assert message.eta is None


def test_a_naive_eta_is_utc(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    f.apply_async(eta=datetime(2099, 1, 1, 12))
    f.apply_async(eta=datetime(2099, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))))
    etas = sorted(message.eta for message in sent(app) if message.eta)
    assert etas == [datetime(2099, 1, 1, 6, 15, tzinfo=UTC), datetime(2099, 1, 1, 12, tzinfo=UTC)]


def test_expires_as_number_moment_and_task_attribute(app: Celeriac) -> None:
    @app.task(expires=100)
    def f() -> None: ...

    now = datetime.now(UTC)
    f.delay()
    f.apply_async(expires=10)
    f.apply_async(expires=datetime(2099, 1, 1))
    f.apply_async(expires=timedelta(hours=1))
    later = datetime.now(UTC)
    for message, seconds in zip(sent(app), (100, 10, None, 3600), strict=True):
        assert message.expires is not None
        assert seconds is None or now <= message.expires - timedelta(seconds=seconds) <= later
    assert sent(app)[2].expires == datetime(2099, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"countdown": "soon"}, TypeError),
        ({"countdown": float("nan")}, ValueError),
        ({"countdown": 1e20}, ValueError),
        ({"eta": 5}, TypeError),
        ({"eta": "tomorrow"}, ValueError),
        ({"expires": "later"}, ValueError),
        ({"priority": 10}, ValueError),
        ({"priority": -1}, ValueError),
        ({"task_id": ""}, ValueError),
        ({"time_limit": 5, "soft_time_limit": 10}, ValueError),
        ({"headers": {"x": object()}}, EncodeError),
    ],
)
def test_impossible_options_are_refused_at_the_call(app: Celeriac, options: Any, error: type[Exception]) -> None:
    @app.task
    def f() -> None: ...

    with pytest.raises(error):
        f.apply_async(**options)
    assert sent(app) == []


def test_an_unknown_option_suggests_the_right_one(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    with pytest.raises(TypeError, match="Did you mean 'countdown'"):
        f.apply_async(count_down=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="args= and kwargs="):
        f.apply_async(zzz=5)  # type: ignore[call-arg]


def test_all_that_apply_async_may_say_is_in_the_message(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    f.apply_async(
        task_id="any/string at all é",
        queue="fast",
        priority=7,
        headers={"tenant": 5, "when": datetime(2026, 1, 1, tzinfo=UTC)},
        time_limit=20,
        soft_time_limit=10,
        shadow="other",
        ignore_result=True,
        group_id="g",
        group_index=3,
        root_id="root",
        parent_id="parent",
        reply_to="me",
        argsrepr="<secret>",
        stamped_headers=["trace"],
        trace="abc",  # type: ignore[call-arg]
    )
    (message,) = sent(app, "fast")
    assert message.id == "any/string at all é"
    assert (message.priority, message.time_limit, message.soft_time_limit) == (7, 20, 10)
    assert message.headers["tenant"] == 5
    assert (message.shadow, message.ignore_result, message.group, message.group_index) == ("other", True, "g", 3)
    assert (message.root_id, message.parent_id, message.reply_to, message.argsrepr) == ("root", "parent", "me", "<secret>")
    assert (message.stamped_headers, message.stamps) == (["trace"], {"trace": "abc"})


def test_what_the_task_says_counts_where_the_call_says_nothing(app: Celeriac) -> None:
    app.conf.update(task_time_limit=100, task_soft_time_limit=50, task_routes={f"{__name__}.*": "routed"})

    @app.task(queue="own", priority=3, time_limit=30)
    def f() -> None: ...

    @app.task
    def g() -> None: ...

    with pytest.raises(ImproperlyConfigured, match="soft_time_limit"):
        f.delay()
    f.soft_time_limit = 20
    f.delay()
    g.delay()
    (of_f,), (of_g,) = sent(app, "own"), sent(app, "routed")
    assert (of_f.priority, of_f.time_limit, of_f.soft_time_limit) == (3, 30, 20)
    assert (of_g.priority, of_g.time_limit, of_g.soft_time_limit) == (0, 100, 50)


def test_an_attribute_that_is_changed_later_counts(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    f.delay()
    f.queue = "later"
    f.delay()
    assert len(sent(app, "later")) == 1


def test_an_attribute_that_is_set_later_is_as_good_as_one_in_the_decorator(app: Celeriac) -> None:
    @app.task(acks_late=False)
    def f() -> None: ...

    f.throws = KeyError  # type: ignore[assignment]
    f.autoretry_for = [OSError]  # type: ignore[assignment]
    f.acks_late = None  # type: ignore[assignment]
    f.queue = "q"
    del f.queue
    f.delay()
    assert (f.throws, f.autoretry_for, f.acks_late, f.queue, len(sent(app))) == ((KeyError,), (OSError,), True, None, 1)


def test_settings_answer_for_what_the_task_leaves_open(app: Celeriac) -> None:
    app.conf.task_acks_late = False

    @app.task(acks_late=None, rate_limit="5/m")
    def f() -> None: ...

    @app.task(acks_late=True)
    def g() -> None: ...

    class Base(Task[..., Any]):
        abstract = True
        acks_late = None  # type: ignore[assignment]
        autoretry_for = [OSError]  # type: ignore[assignment]

    @app.task(base=Base, throws=KeyError)
    def h() -> None: ...

    assert (f.acks_late, g.acks_late, h.acks_late) == (False, True, False)
    assert (f.rate_limit, g.rate_limit) == ("5/m", None)
    assert (h.autoretry_for, h.throws) == ((OSError,), (KeyError,))
    assert isinstance(h, Base)


def test_links_travel_in_the_body(app: Celeriac) -> None:
    @app.task
    def f(x: int = 0) -> None: ...

    f.apply_async(link=f.s(1), link_error=[f.si(), f.s().set(queue="errors")])
    (message,) = sent(app)
    embed = decode_body(message)[2]
    assert [sig["task"] for sig in embed["callbacks"]] == [f.name]
    assert [sig["immutable"] for sig in embed["errbacks"]] == [True, False]
    assert embed["errbacks"][1]["options"] == {"queue": "errors"}


def test_long_arguments_are_shown_short(app: Celeriac) -> None:
    @app.task
    def f(*args: Any, **kwargs: Any) -> None: ...

    class Sly:
        def __json__(self) -> str:
            return "sly"

        def __repr__(self) -> str:
            raise RuntimeError

    f.delay("x" * 100_000, [list(range(10_000))], deep={"a": {"b": {"c": {"d": {"e": 1}}}}}, sly=Sly())
    f.delay(10**5000 if False else 10**300, b"x" * 5000)
    for message in sent(app):
        assert len(message.argsrepr) <= 1024
        assert len(message.kwargsrepr) <= 1024
    assert "..." in sent(app)[0].kwargsrepr


# -- shared between threads, pickled --------------------------------------------------------------------------------------------


def test_many_threads_may_make_the_first_call_at_once() -> None:
    app = Celeriac("proj", broker="memory://", set_as_current=False)

    @app.task
    def f(x: int) -> None: ...

    barrier = threading.Barrier(8)
    problems: list[BaseException] = []

    def call(n: int) -> None:
        try:
            barrier.wait(40)
            f.delay(n)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert problems == []
    assert app.broker.depth()["celery"].ready == 8
    app.close()


def test_a_task_is_pickled_by_its_name(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    assert pickle.loads(pickle.dumps(f)) is f


async def _double(x: int) -> int:
    return 2 * x


def test_async_def_is_seen_through_partials_and_callables(app: Celeriac) -> None:
    class Doubler:
        async def __call__(self, x: int) -> int:
            return 2 * x

    assert app.task(_double).is_async
    assert app.task(name="a")(functools.partial(_double, 1)).is_async
    assert app.task(name="b")(Doubler()).is_async
    assert not app.task(name="c")(lambda: 1).is_async


def test_delay_from_a_coroutine(app: Celeriac) -> None:
    import asyncio

    @app.task
    def f(x: int) -> None: ...

    async def main() -> None:
        result = await f.adelay(1)
        other = await f.aapply_async((2,), countdown=60)
        assert {message.id for message in sent(app)} == {result.id, other.id}
        with pytest.raises(TypeError):
            await f.aapply_async(())

    asyncio.run(main())


def test_errors_where_celerys_users_look_for_them(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Any) -> str:
        try:
            raise self.retry(max_retries=0)
        except self.MaxRetriesExceededError as error:
            return type(error).__name__

    assert f.apply().get() == "MaxRetriesExceededError"
    assert issubclass(EnqueueError, f.OperationalError)
    assert issubclass(f.delay().TimeoutError, TimeoutError)


def test_a_queue_that_is_no_name(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    with pytest.raises(TypeError, match=r"queue=5: give the name of a queue"):
        f.apply_async(queue=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time_limit": "5"}, "time_limit must be seconds"),
        ({"soft_time_limit": -1}, "soft_time_limit must be seconds"),
        ({"rate_limit": "10/x"}, "rate_limit must be a rate such as"),
        ({"priority": "high"}, "priority must be a whole number from 0 to 9"),
        ({"serializer": "yml"}, "serializer must be one of"),
        ({"max_retries": "3"}, "max_retries must be a whole number"),
        ({"default_retry_delay": "60"}, "default_retry_delay must be seconds"),
        ({"retry_backoff": "2"}, "retry_backoff must be"),
        ({"autoretry_for": ("ValueError",)}, "autoretry_for must be exception classes, not 'ValueError'"),
        ({"throws": (ValueError("x"),)}, "throws must be exception classes"),
    ],
)
def test_an_attribute_that_would_fail_in_a_worker_fails_at_the_call(app: Celeriac, options: dict[str, Any], says: str) -> None:
    @app.task(**options)
    def f() -> None: ...

    with pytest.raises(ImproperlyConfigured, match=says):
        f.delay()


def test_time_limits_of_a_call_are_numbers(app: Celeriac) -> None:
    @app.task(time_limit=timedelta(minutes=1))
    def f() -> None: ...

    producer = app.producer
    assert producer.message(f.name, (), {}, task=f, options={}).time_limit == 60
    assert producer.message(f.name, (), {}, task=f, options={"soft_time_limit": timedelta(seconds=5)}).soft_time_limit == 5
    with pytest.raises(TypeError, match="time_limit='5': give a number of seconds"):
        f.apply_async(time_limit="5")  # type: ignore[typeddict-item]
