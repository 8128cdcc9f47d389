"""What people do wrong, and what programs around a task do to it: each ends in a sentence that names the culprit, and never in silence.

What engines do when their file is damaged, full or locked is in tests/unit/engines and tests/faults (P8); what workers do with a message that cannot be
decoded in tests/faults (P10).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.core.errors import EncodeError, EnqueueError, ImproperlyConfigured, NotRegistered, TaskError
from celeriac.tasks import registry
from celeriac.testing import FaultyEngine
from tests.support.workers import PATIENCE_SECONDS, children_of, until

pytest_plugins = ["pytester"]
SOURCES = Path(__file__).parents[2] / "src"

CALLED = """
import os, sys
from celeriac import Celeriac, shared_task

app = Celeriac("shop", broker="sqlite:///" + os.path.join(os.path.dirname(os.path.abspath(__file__)), "queue.db"))

@app.task
def add(x, y):
    return x + y

@app.task
def size(text):
    return len(text)

@app.task
def text(size):
    return "x" * size

def endless():
    found = []
    found.append(found)
    return found

VALUES = {"a set": lambda: {1}, "an object": object, "a function": lambda: len, "a generator": lambda: iter([1]), "itself": endless}

@app.task
def give(what):
    return VALUES[what]()

class Rude(Exception):
    def __str__(self):
        raise RuntimeError("not even this")
    __repr__ = __str__

class Picky(Exception):
    def __init__(self, *, why):
        super().__init__(why)

@app.task
def fail(how):
    match how:
        case "rude": raise Rude
        case "picky": raise Picky(why="because")
        case "large": raise ValueError("x" * 5_000_000)
        case "odd": raise ValueError(object(), {1}, len)
        case "several": raise ExceptionGroup("several", [ValueError(1), KeyError(2)])
        case "exit": sys.exit(3)
        case "interrupt": raise KeyboardInterrupt
        case "cancelled":
            import asyncio
            raise asyncio.CancelledError
"""


class Shop:
    """A folder with a program, and a worker that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(CALLED)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
        self.environment = {**kept, "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "log").open("w") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "celeriac", "-A", "shop", "worker", "-c", "2"],
                cwd=folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        """A program of somebody who calls tasks; it has to end by itself."""
        return subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(program)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def close(self) -> None:
        try:
            # Not every test waits for the worker, and one that has no processes yet may not know what a TERM means.
            until(lambda: children_of(self.worker.pid) or self.worker.poll() is not None, "the worker has processes")
            self.worker.send_signal(signal.SIGTERM)
            assert self.worker.wait(PATIENCE_SECONDS) == 0, (self.folder / "log").read_text()
        finally:
            self.worker.kill()
            self.worker.wait()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    sys.path.insert(0, str(shop.folder))
    before = registry.current.app
    import shop as module  # type: ignore[import-not-found]

    module.place = shop
    yield module
    module.app.close()
    sys.path.remove(str(shop.folder))
    sys.modules.pop("shop", None)
    registry.set_current_app(None)
    registry.set_default_app(before)
    shop.close()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For apps that are made in a test."""
    before = registry.current.app
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    yield
    registry.set_current_app(None)
    registry.set_default_app(before)


# -- settings --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task_time_limt": 5}, "Did you mean 'task_time_limit'"),
        ({"CELERY_TASK_ALWAYS_EAGER": True}, "namespace='CELERY'"),
        ({"task_serializer": "yml"}, "task_serializer must be one of"),
        ({"accept_content": ["xml"]}, "accept_content must be a list of serializers"),
        ({"task_time_limit": "60"}, "task_time_limit must be seconds"),
        ({"timezone": "Nepal/Nowhere"}, "timezone must be the name of a time zone"),
        ({"task_routes": {"a.*": {"queu": "x"}}}, "'queu'"),
        ({"broker_url": ""}, "broker_url must be a URL"),
        ({"task_soft_time_limit": 60, "task_time_limit": 30}, "must be shorter than task_time_limit"),
        ({"task_default_priority": 12}, "task_default_priority must be a whole number from 0 to 9"),
    ],
)
def test_a_broken_setting_is_named(alone: None, settings: dict[str, Any], says: str) -> None:
    app = Celeriac("x")
    with pytest.raises(ImproperlyConfigured, match=says):
        app.conf.update(settings)
        _ = app.conf.task_acks_late
    loaded = Celeriac("y")
    loaded.config_from_object(settings)
    with pytest.raises(ImproperlyConfigured, match=says):
        loaded.conf.get("task_acks_late")


def test_a_name_that_is_no_setting_is_an_error_to_read_too(alone: None) -> None:
    app = Celeriac("x", broker="memory://")
    with pytest.raises(AttributeError, match="Did you mean 'task_always_eager'"):
        _ = app.conf.task_alway_eager
    assert app.conf.get("task_alway_eager", 3) == 3


@pytest.mark.parametrize("url", ["redis//localhost", "localhost:6379", "mongodb://h", "nats://h", "cache+memcached://h"])
def test_an_engine_that_is_not_there_is_named_with_those_that_are(alone: None, url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"sqlite:///relative.db"):
        _ = Celeriac("x", broker=url).broker
    with pytest.raises(ImproperlyConfigured, match=r"sqlite:///relative.db"):
        _ = Celeriac("x", broker="memory://", backend=url).backend


def test_a_password_is_in_no_error(alone: None) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        _ = Celeriac("x", broker="mongodb://me:s3cret@h/db").broker
    assert "s3cret" not in str(caught.value)


def test_a_task_that_is_used_before_there_is_an_app(alone: None) -> None:
    from celeriac import shared_task

    registry.set_current_app(None)
    registry.set_default_app(None)

    @shared_task
    def lonely() -> None: ...

    with pytest.raises(ImproperlyConfigured, match=r"There is no Celeriac app yet.*import app as celery_app"):
        lonely.delay()


# -- calls -----------------------------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_travel_are_named(shop: Any) -> None:
    for args, says in (
        (({1, 2}, 1), r"args\[0\] is a set"),
        (({"users": [{"tags": object()}]}, 1), r"args\[0\]\['users'\]\[0\]\['tags'\]"),
        ((threading_lock, 1), r"args\[0\] is a function"),
        ((threading_lock(), 1), r"args\[0\]"),
    ):
        with pytest.raises(EncodeError, match=says):
            shop.add.delay(*args)
    with pytest.raises(EncodeError, match=r"kwargs\['y'\]"):
        shop.add.delay(1, y=object())


def threading_lock() -> Any:
    import threading

    return threading.Lock()


def test_options_that_mean_nothing_are_refused_at_the_call(shop: Any) -> None:
    for options, says in (
        ({"countdwn": 3}, "Did you mean 'countdown'"),
        ({"countdown": "soon"}, "give a number of seconds"),
        ({"eta": 3}, "eta=3: give a datetime"),
        ({"eta": "tomorrow"}, "is not an ISO 8601"),
        ({"expires": "never"}, "is not an ISO 8601"),
        ({"priority": 10}, "from 0 to 9"),
        ({"priority": "high"}, "from 0 to 9"),
        ({"queue": 5}, "give the name of a queue"),
        ({"serializer": "yml"}, "yml"),
        ({"serializer": "pickle"}, "accept_content"),
        ({"task_id": ""}, "task_id"),
        ({"headers": {"a": object()}}, r"headers\['a'\]"),
        ({"soft_time_limit": 5, "time_limit": 3}, "must not be longer"),
    ):
        with pytest.raises((TypeError, ValueError, ImproperlyConfigured), match=says):
            shop.add.apply_async((1, 2), **options)
    with pytest.raises(TypeError, match="must be a list or tuple"):
        shop.size.apply_async("text")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        shop.add.delay(1)
    with pytest.raises(NotRegistered, match="is not registered in this app"):
        _ = shop.app.tasks["shop.ad"]


def test_a_broker_that_is_away_is_an_enqueue_error_of_this_call(alone: None, tmp_path: Path) -> None:
    app = Celeriac("x", broker="memory://")

    @app.task
    def f() -> int:
        return 1

    with app.with_engine(FaultyEngine(app.broker, fail_at=1, times=10)):
        with pytest.raises(f.OperationalError) as caught:
            f.delay()
    assert isinstance(caught.value, EnqueueError)
    assert caught.value.task_name == f.name and caught.value.task_id
    app.close()


# -- what tasks give back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a set", "an object", "a function", "a generator", "itself"])
def test_a_result_that_cannot_travel_is_a_failure_that_says_so(shop: Any, what: str) -> None:
    result = shop.give.delay(what)
    with pytest.raises(EncodeError, match="^result"):
        result.get(timeout=30)
    assert result.state == "FAILURE"


@pytest.mark.parametrize(
    ("how", "type_name", "says"),
    [
        ("rude", "Exception", "Rude"),
        ("picky", "Picky", "because"),
        ("large", "ValueError", "xxx"),
        ("odd", "ValueError", "object"),
        ("several", "Exception", "several"),
    ],
)
def test_an_exception_that_cannot_travel_arrives_all_the_same(shop: Any, how: str, type_name: str, says: str) -> None:
    result = shop.fail.delay(how)
    with pytest.raises(Exception, match=says) as caught:
        result.get(timeout=30)
    assert type(caught.value).__name__ == type_name
    assert result.traceback


@pytest.mark.parametrize(
    ("how", "type_name"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("cancelled", "CancelledError")]
)
def test_the_end_of_a_task_is_not_the_end_of_who_asks_for_it(shop: Any, how: str, type_name: str) -> None:
    result = shop.fail.delay(how)
    with pytest.raises(TaskError, match=type_name):
        result.get(timeout=30)
    with pytest.raises(TaskError, match=type_name):
        asyncio.run(result.aget(timeout=30))
    assert type(result.get(propagate=False)).__name__ == type_name
    assert result.state == "FAILURE"


def test_huge_arguments_and_results(shop: Any) -> None:
    assert shop.size.delay("x" * 10_000_000).get(timeout=60) == 10_000_000
    assert len(shop.text.delay(10_000_000).get(timeout=60)) == 10_000_000


def test_the_worker_is_none_the_worse_for_any_of_it(shop: Any) -> None:
    assert shop.add.delay(1, 2).get(timeout=30) == 3
    assert shop.place.worker.poll() is None


# -- around the call -------------------------------------------------------------------------------------------------------------

SITUATIONS = {
    "threads": """
        import shop
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(16) as threads:
            print(sum(threads.map(lambda n: shop.add.delay(n, 1).get(timeout=30), range(100))))
    """,
    "fork": """
        import multiprocessing, shop
        def child(n):
            return shop.add.delay(n, 1).get(timeout=30)
        shop.add.delay(0, 0).get(timeout=30)  # the engine is open before the fork
        with multiprocessing.get_context("fork").Pool(4) as pool:
            print(sum(pool.map(child, range(100))))
    """,
    "prefork server": """
        import os, shop
        assert shop.add.delay(0, 0).get(timeout=30) == 0
        pids = []
        for n in range(4):
            pid = os.fork()
            if pid == 0:
                found = [shop.add.delay(n, m).get(timeout=30) for m in range(25)]
                os._exit(0 if found == [n + m for m in range(25)] else 1)
            pids.append(pid)
        assert shop.add.delay(1, 1).get(timeout=30) == 2
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
        print(shop.add.delay(5000, 50).get(timeout=30))
    """,
    "asyncio": """
        import asyncio, shop
        async def one(n):
            result = await shop.add.adelay(n, 1)
            return await result.aget(timeout=30)
        async def main():
            shared = shop.add.apply_async((1, 1), countdown=0.2)
            many = await asyncio.gather(*[shared.aget(timeout=30) for _ in range(50)])
            assert many == [2] * 50
            late = asyncio.create_task(shop.add.apply_async((1, 1), countdown=3600).aget())
            await asyncio.sleep(0)
            late.cancel()
            assert isinstance((await asyncio.gather(late, return_exceptions=True))[0], asyncio.CancelledError)
            try:
                await shop.add.apply_async((1, 1), countdown=3600).aget(timeout=0.05)
            except TimeoutError:
                pass
            print(sum(await asyncio.gather(*[one(n) for n in range(100)])))
        asyncio.run(main())
    """,
    "a thread of a running loop": """
        import asyncio, shop
        async def main():
            print(await asyncio.to_thread(lambda: shop.add.delay(5000, 50).get(timeout=30)))
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_calls_work_wherever_they_are_made(shop: Any, situation: str) -> None:
    done = shop.place.run(SITUATIONS[situation])
    assert (done.stdout.strip(), done.stderr.strip()) == ("5050", "")


# -- programs that cannot be imported ----------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "a syntax error": ({"bad.py": "from celeriac import Celeriac\napp = Celeriac('x'\n"}, "SyntaxError"),
    "a missing import": ({"bad.py": "import not_there\n"}, "No module named 'not_there'"),
    "a circle": (
        {
            "bad/__init__.py": "",
            "bad/celery.py": "from bad.tasks import add\nfrom celeriac import Celeriac\napp = Celeriac('bad')\n",
            "bad/tasks.py": "from bad.celery import app\n",
        },
        "circular import",
    ),
    "an error in a module of tasks": (
        {
            "bad/__init__.py": "",
            "bad/celery.py": "from celeriac import Celeriac\napp = Celeriac('bad', broker='memory://')\napp.autodiscover_tasks(['bad'])\n",
            "bad/tasks.py": "limit = 1 / 0\n",
        },
        "ZeroDivisionError",
    ),
    "an include that is not there": (
        {"bad.py": "from celeriac import Celeriac\napp = Celeriac('x', include=['nowhere.tasks'])\n"},
        "nowhere",
    ),
    "an exit": ({"bad.py": "import sys\nsys.exit(0)\n"}, "SystemExit"),
    "two tasks of one name": (
        {
            "bad.py": "from celeriac import Celeriac\napp = Celeriac('x', broker='memory://')\n"
            "@app.task(name='one')\ndef one(): ...\n@app.task(name='one')\ndef other(): ...\n"
        },
        "Two tasks are named 'one'",
    ),
    "a wrong setting": (
        {"bad.py": "from celeriac import Celeriac\napp = Celeriac('x')\napp.config_from_object({'worker_concurency': 2})\n"},
        "Did you mean 'worker_concurrency'",
    ),
    "no app": ({"bad.py": "name = 'no app'\n"}, "there is no Celeriac app in it"),
    "an app of Celery": (
        {"celery.py": "class Celery: ...\n", "bad.py": "import celery\napp = celery.Celery()\n"},
        "from celeriac import Celeriac",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_program_that_cannot_be_loaded_is_shown_to_its_author(tmp_path: Path, case: str) -> None:
    files, says = BROKEN[case]
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
    done = subprocess.run(
        [sys.executable, "-m", "celeriac", "-A", "bad", "worker"],
        cwd=tmp_path, env={**kept, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    shown = done.stderr + done.stdout
    assert done.returncode not in (0, 1, -1), shown
    assert says in shown
    assert "celeriac/cli" not in shown, "the author's lines, and not ours"


# -- the users' own tests ----------------------------------------------------------------------------------------------------------


def test_in_pytest_with_nothing_but_the_fixture(pytester: pytest.Pytester, alone: None) -> None:
    pytester.makepyfile(
        project="""
        from celeriac import Celeriac
        app = Celeriac("project", broker="sqlite:////nowhere/queue.db")

        @app.task(bind=True, max_retries=3)
        def flaky(self, fails):
            if self.request.retries < fails:
                raise self.retry(countdown=3600)
            return self.request.retries
        """,
        test_project="""
        import pytest
        from project import app, flaky
        from celeriac.exceptions import EncodeError, Retry

        def test_as_a_function():
            assert flaky(0) == 0
            with pytest.raises(Retry):
                flaky(1)

        def test_with_a_worker(celeriac_worker):
            result = flaky.delay(2)
            celeriac_worker.assert_enqueued(flaky, args=(2,))
            celeriac_worker.run_all()
            assert result.get(timeout=1) == 2

        def test_eagerly(monkeypatch):
            monkeypatch.setattr(app.conf, "task_always_eager", True)
            assert flaky.delay(1).get() == 1
            with pytest.raises(EncodeError):
                flaky.delay(object())

        def test_not_eager_any_more():
            assert app.conf.task_always_eager is False

        def test_mocked(monkeypatch):
            calls = []
            monkeypatch.setattr("project.flaky.delay", lambda *args: calls.append(args))
            flaky.delay(7)
            assert calls == [(7,)]
        """,
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=5)
