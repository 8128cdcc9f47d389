"""The app: settings until first use, registration, discovery, engines."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac import Celeriac, Task, shared_task
from celeriac.core.errors import AlreadyRegistered, ImproperlyConfigured
from celeriac.tasks import registry


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = registry.current.app
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    yield
    registry.set_current_app(None)
    registry.set_default_app(before)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes modules that can be imported during the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            for parent in path.parents:
                if parent == tmp_path:
                    break
                (parent / "__init__.py").touch()
            path.write_text(textwrap.dedent(text))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


# -- settings ------------------------------------------------------------------------------------------------------------------


def test_settings_may_be_set_until_the_app_is_in_use() -> None:
    app = Celeriac("x", broker="memory://")
    app.conf.task_acks_late = False
    app.conf["task_default_queue"] = "q"
    app.conf.update(task_time_limit=5, result_expires=60)
    conf = app.conf
    assert (conf.task_acks_late, conf.task_default_queue, conf["task_time_limit"], conf.get("result_expires")) == (False, "q", 5.0, 60.0)
    conf.task_acks_late = True
    assert conf.task_acks_late is True
    app.broker.depth()
    with pytest.raises(ImproperlyConfigured, match=r"app.conf.task_acks_late comes too late.*memory://"):
        app.conf.task_acks_late = False
    with pytest.raises(ImproperlyConfigured, match="too late"):
        app.config_from_object({})
    assert conf.task_acks_late is True
    app.close()
    app.conf.task_acks_late = False


def test_a_wrong_setting_is_refused_where_it_is_set() -> None:
    app = Celeriac("x")
    with pytest.raises(ImproperlyConfigured, match="Did you mean 'task_time_limit'"):
        app.conf.task_time_limt = 5
    with pytest.raises(ImproperlyConfigured, match="task_time_limit must be"):
        app.conf.task_time_limit = "long"
    with pytest.raises(ImproperlyConfigured, match="Unknown setting 'brocker'"):
        Celeriac("x", brocker="memory://")
    assert app.conf.task_time_limit is None


def test_settings_that_belong_together_may_be_set_one_by_one_in_any_order() -> None:
    app = Celeriac("x")
    app.conf.task_serializer = "pickle"
    app.conf.worker_lease_duration = 3
    app.conf.accept_content = ["json", "pickle"]
    app.conf.worker_heartbeat_interval = 0.5
    assert (app.conf.task_serializer, app.conf.worker_lease_duration) == ("pickle", 3.0)
    app.conf.accept_content = ["json"]
    with pytest.raises(ImproperlyConfigured, match="task_serializer 'pickle' is not in accept_content"):
        _ = app.conf.task_serializer


def test_what_goes_before_what(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celeriac("x", backend="disabled")
    app.config_from_object({"broker_url": "memory://config", "result_backend": "memory://config", "task_default_queue": "config"})
    assert (app.conf.broker_url, app.conf.result_backend, app.conf.task_default_queue) == ("memory://config", "disabled", "config")
    app.conf.broker_url = "memory://set"
    assert app.conf.broker_url == "memory://set"
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://environment")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "memory://environment-too")
    again = Celeriac("x", broker="memory://given")
    assert (again.conf.broker_url, again.conf.result_backend) == ("memory://environment", "memory://environment-too")


def test_settings_from_a_module_with_a_namespace(package: Any) -> None:
    package(
        conf_ns="""
        import os
        SECRET_KEY = "x"
        CELERY_BROKER_URL = "memory://ns"
        CELERY_TASK_ALWAYS_EAGER = True
        CELERY_TIMEZONE = "Asia/Kathmandu"
        CELERY_WORKER_PREFETCH_MULTIPLIER = 1
        """
    )
    app = Celeriac("x")
    app.config_from_object("conf_ns", namespace="CELERY")
    assert "conf_ns" not in sys.modules
    assert (app.conf.broker_url, app.conf.task_always_eager, app.conf.timezone) == ("memory://ns", True, "Asia/Kathmandu")
    assert str(app.timezone) == "Asia/Kathmandu"
    assert any("worker_prefetch_multiplier" in remark for remark in app.conf.remarks)


def test_settings_from_a_module_an_attribute_and_an_object(package: Any) -> None:
    package(conf_plain="import os\nbroker_url = 'memory://plain'\nclass Dev:\n    broker_url = 'memory://dev'\nsettings = Dev()\n")
    for source, url in [
        ("conf_plain", "plain"),
        ("conf_plain:settings", "dev"),
        ("conf_plain.Dev", "dev"),
        (SimpleNamespace(broker_url="memory://ns"), "ns"),
    ]:
        app = Celeriac("x")
        app.config_from_object(source)
        assert app.conf.broker_url == f"memory://{url}"


def test_the_time_zone_of_django_counts_when_none_is_named() -> None:
    django_like = type("LazySettings", (), {"__module__": "django.conf", "TIME_ZONE": "Asia/Kathmandu", "CELERY_BROKER_URL": "memory://"})
    app = Celeriac("x")
    app.config_from_object(django_like(), namespace="CELERY")
    assert app.conf.timezone == "Asia/Kathmandu"


def test_a_typo_in_a_settings_module(package: Any) -> None:
    package(conf_typo="CELERY_TASK_TIME_LIMT = 5\n")
    app = Celeriac("x")
    app.config_from_object("conf_typo", namespace="CELERY")
    with pytest.raises(ImproperlyConfigured, match="CELERY_TASK_TIME_LIMT.*CELERY_TASK_TIME_LIMIT"):
        _ = app.conf.broker_url


def test_a_settings_module_that_is_not_there() -> None:
    app = Celeriac("x")
    app.config_from_object("no_such_module")
    with pytest.raises(ModuleNotFoundError):
        _ = app.conf.broker_url
    app.config_from_object("no_such_module", silent=True, force=True)
    assert app.conf.task_default_queue == "celery"
    app.config_from_envvar("NO_SUCH_VARIABLE", silent=True)
    with pytest.raises(ImproperlyConfigured, match="NO_SUCH_VARIABLE"):
        app.config_from_envvar("NO_SUCH_VARIABLE")


def test_defaults_count_last() -> None:
    app = Celeriac("x")
    app.add_defaults({"task_default_queue": "d", "task_time_limit": 9})
    app.conf.task_default_queue = "set"
    assert (app.conf.task_default_queue, app.conf.task_time_limit) == ("set", 9)


def test_on_after_configure_comes_once_with_the_settings() -> None:
    app = Celeriac("x")
    seen: list[Any] = []

    @app.on_after_configure.connect
    def setup(sender: Celeriac, source: Any, **kwargs: Any) -> None:
        seen.append(source.task_default_queue)
        sender.add_periodic_task(10.0, f.s("hello"), name="say")

    @app.on_after_finalize.connect
    def finalized(sender: Celeriac, **kwargs: Any) -> None:
        seen.append("finalized")

    @app.task
    def f(text: str) -> None: ...

    app.conf.task_default_queue = "q"
    app.finalize()
    app.finalize()
    assert seen == ["q", "finalized"]
    assert app.periodic_tasks["say"]["args"] == ("hello",)


# -- tasks -----------------------------------------------------------------------------------------------------------------------


def test_two_tasks_of_one_name() -> None:
    app = Celeriac("x")

    def define(text: str) -> Any:
        @app.task(name="same")
        def f() -> str:
            return text

        return f

    define("first")
    assert define("again")() == "again"
    assert app.tasks["same"]() == "again"
    with pytest.raises(AlreadyRegistered, match="Two tasks are named 'same'"):

        @app.task(name="same")
        def other() -> None: ...


def test_a_shared_task_does_not_replace_an_apps_own_silently() -> None:
    app = Celeriac("x")

    @app.task(name="x.own")
    def own() -> None: ...

    app.finalize()
    with pytest.raises(AlreadyRegistered):

        @shared_task(name="x.own")
        def intruder() -> None: ...

    registry._shared.pop("x.own")


def test_class_based_tasks() -> None:
    app = Celeriac("x")

    class Report(Task[..., Any]):
        max_retries = 7
        made = 0

        def __init__(self) -> None:
            type(self).made += 1

        def run(self, n: int) -> int:
            return n * 2

    report = app.register_task(Report())
    assert report.name == f"{__name__}.Report"
    assert app.tasks[report.name] is report
    assert (report(4), report.apply((4,)).get(), report.max_retries, Report.made) == (8, 8, 7, 1)
    with pytest.raises(NotImplementedError):
        app.register_task(type("Empty", (Task,), {}))()


def test_the_base_of_all_tasks_of_an_app() -> None:
    class Base(Task[..., Any]):
        abstract = True
        max_retries = 9

    app = Celeriac("x", task_cls=Base)

    @app.task
    def f() -> None: ...

    assert f.max_retries == 9
    assert isinstance(f, Base)


def test_annotations() -> None:
    app = Celeriac("x")

    @app.task(name="a")
    def a() -> None: ...

    app.conf.task_annotations = {"*": {"max_retries": 1}, "a": {"rate_limit": "1/s"}}
    app.finalize()
    assert (a.max_retries, a.rate_limit) == (1, "1/s")


def test_an_annotation_that_is_a_function_becomes_a_method() -> None:
    app = Celeriac("x", broker="memory://")
    failed: list[Any] = []

    def on_failure(self: Any, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        failed.append((self.name, exc.args))

    @app.task(name="a")
    def a() -> None:
        raise ValueError("no")

    app.conf.task_annotations = {"*": {"on_failure": on_failure}}
    app.finalize()
    a.apply()
    assert failed == [("a", ("no",))]
    app.close()


def test_decorators_refuse_positional_options() -> None:
    app = Celeriac("x")
    with pytest.raises(TypeError, match="keywords only"):
        app.task("name")  # type: ignore[call-overload]


def test_gen_task_name_may_be_overridden() -> None:
    class Mine(Celeriac):
        def gen_task_name(self, name: str, module: str) -> str:
            return f"mine.{name}"

    app = Mine("x")

    @app.task
    def f() -> None: ...

    assert f.name == "mine.f"


# -- discovery -------------------------------------------------------------------------------------------------------------------


def test_autodiscovery_is_silent_only_about_a_missing_module(package: Any) -> None:
    package(
        shop__tasks="from celeriac import shared_task\n@shared_task\ndef charge(): ...\n",
        mail__other="",
        mail__jobs="from celeriac import shared_task\n@shared_task\ndef send(): ...\n",
        broken__tasks="import does_not_exist\n",
        wrong__tasks="1 / 0\n",
    )
    app = Celeriac("x")
    app.autodiscover_tasks(["shop", "mail"])
    app.autodiscover_tasks(lambda: ["mail"], related_name="jobs")
    assert "shop.tasks" not in sys.modules
    app.import_modules()
    assert {"shop.tasks.charge", "mail.jobs.send"} <= set(app.tasks)
    for name, error in [("broken", ModuleNotFoundError), ("wrong", ZeroDivisionError), ("nowhere_at_all", ModuleNotFoundError)]:
        with pytest.raises(error):
            app.autodiscover_tasks([name], force=True)
    app.autodiscover_tasks(["shop.tasks.SomeClass"], force=True)
    for name in ("shop.tasks.charge", "mail.jobs.send"):
        registry._shared.pop(name)


def test_autodiscovery_without_packages_and_without_django_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    if "django" in sys.modules:
        pytest.skip("Django is loaded in this process")
    Celeriac("x").autodiscover_tasks(force=True)


def test_imports_and_include(package: Any) -> None:
    package(one_m="", two_m="", three_m="", four_m="")
    app = Celeriac("x", include=["three_m"])
    app.conf.update(imports=["one_m"], include=("two_m",))
    app.import_modules(["four_m"])
    assert {"one_m", "two_m", "three_m", "four_m"} <= set(sys.modules)


# -- engines ---------------------------------------------------------------------------------------------------------------------


def test_results_live_with_the_broker_unless_told_otherwise(tmp_path: Path) -> None:
    app = Celeriac("x", broker="memory://")
    assert app.backend is app.broker  # type: ignore[comparison-overlap]
    assert app.results_with_broker
    same = Celeriac("x", broker=f"sqlite:///{tmp_path}/a.db", backend=f"sqlite:///{tmp_path}/a.db")
    assert same.results_with_broker
    other = Celeriac("x", broker="memory://", backend=f"sqlite:///{tmp_path}/b.db")
    assert not other.results_with_broker
    for each in (app, same, other):
        each.close()


def test_results_over_rpc_are_results_in_the_brokers_engine() -> None:
    app = Celeriac("x", broker="memory://", backend="rpc://")
    assert app.results_with_broker
    app.close()


def test_strict_typing_is_for_all_tasks_of_an_app() -> None:
    app = Celeriac("x", broker="memory://", strict_typing=False)

    @app.task
    def lax(x: int) -> int:
        return x

    @app.task(typing=True)
    def strict(x: int) -> int:
        return x

    lax.apply_async((1, 2))
    with pytest.raises(TypeError):
        strict.apply_async((1, 2))
    app.close()


def test_an_unknown_engine_lists_the_known_ones() -> None:
    with pytest.raises(ImproperlyConfigured, match="memory://"):
        _ = Celeriac("x", broker="carrier-pigeon://loft").broker


def test_nothing_is_opened_by_defining_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Celeriac("x")

    @app.task
    def f(x: int) -> int:
        return x

    f.s(1)
    assert f(1) == f.apply((1,)).get() == 1
    assert app.conf.broker_url == "sqlite:///celeriac.db"
    assert list(tmp_path.iterdir()) == []


def test_many_threads_open_one_engine() -> None:
    app = Celeriac("x", broker="memory://")
    barrier = threading.Barrier(8)
    seen: list[Any] = []

    def look() -> None:
        barrier.wait(40)
        seen.append((id(app.producer), id(app.broker), id(app.backend), id(app.tasks)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(seen) == 8
    assert len(set(seen)) == 1
    app.close()


def test_a_fork_while_another_thread_holds_the_lock() -> None:
    from celeriac import app as module

    app = Celeriac("x", broker="memory://")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with module._lock:
            held.set()
            done.wait(40)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(40)
    pid = os.fork()
    if pid == 0:
        import signal

        signal.alarm(30)
        os._exit(0 if app.tasks is not None else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_app_is_pickled_as_the_one_that_is_here() -> None:
    app = Celeriac("pickled", broker="memory://")
    assert pickle.loads(pickle.dumps(app)) is app
    registry.set_default_app(None)
    other = Celeriac("elsewhere", broker="memory://x", task_default_queue="q", set_as_current=False)
    again = pickle.loads(pickle.dumps(other))
    assert (again.main, again.conf.broker_url, again.conf.task_default_queue) == ("elsewhere", "memory://x", "q")
    assert repr(app).startswith("<Celeriac pickled at 0x")


def test_an_app_is_a_context() -> None:
    with Celeriac("x", broker="memory://") as app:
        app.broker.depth()
    assert app._broker is None
