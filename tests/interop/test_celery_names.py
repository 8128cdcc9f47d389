"""What programs written for Celery name, exists here, and takes at least what it takes there.

The lists are Celery 5.7's, of what belongs to the rooms that exist: calling, results, workers, the command line. Canvas, beat and Django's models
are not among them yet. Where Celery is installed beside us, its own signatures are compared as well.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from celeriac import Celeriac, Task, states
from celeriac.cli.main import cli
from celeriac.core.settings import Settings
from celeriac.result import AsyncResult, EagerResult
from celeriac.tasks import registry
from celeriac.tasks.producer import OPTIONS


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celeriac]:
    before = registry.current.app
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    app = Celeriac("proj", broker="memory://")
    yield app
    app.close()
    registry.set_current_app(None)
    registry.set_default_app(before)


# -- import paths ----------------------------------------------------------------------------------------------------------------

MODULES = {
    "": "Celery Task Signature signature maybe_signature subtask shared_task current_app current_task states uuid __version__",
    "app": "shared_task app_or_default",
    "canvas": "Signature signature maybe_signature subtask",
    "result": "AsyncResult EagerResult allow_join_result denied_join_result result_from_tuple assert_will_not_block",
    "exceptions": "AlreadyRegistered CeleryError ChordError Ignore ImproperlyConfigured MaxRetriesExceededError NotRegistered OperationalError "
    "QueueNotFound Reject Retry SoftTimeLimitExceeded TaskError TaskPredicate TaskRevokedError TimeLimitExceeded TimeoutError WorkerLostError",
    "states": "PENDING RECEIVED STARTED SUCCESS FAILURE RETRY REVOKED IGNORED REJECTED READY_STATES UNREADY_STATES EXCEPTION_STATES "
    "PROPAGATE_STATES ALL_STATES precedence state",
    "signals": "before_task_publish after_task_publish task_prerun task_postrun task_success task_retry task_failure task_internal_error "
    "task_received task_revoked task_unknown task_rejected task_sent import_modules celeryd_init celeryd_after_setup worker_init worker_ready "
    "worker_shutting_down worker_shutdown worker_before_create_process worker_process_init worker_process_shutdown heartbeat_sent setup_logging "
    "after_setup_logger after_setup_task_logger beat_init beat_embedded_init eventlet_pool_started eventlet_pool_preshutdown "
    "eventlet_pool_postshutdown eventlet_pool_apply user_preload_options",
    "utils.log": "get_task_logger",
    "contrib.abortable": "AbortableTask AbortableAsyncResult ABORTED",
}


@pytest.mark.parametrize("module", MODULES)
def test_import_paths(module: str) -> None:
    ours = importlib.import_module(f"celeriac.{module}".rstrip("."))
    assert [name for name in MODULES[module].split() if not hasattr(ours, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_lists_are_true_of_celery(module: str) -> None:
    pytest.importorskip("celery", reason="Celery is not installed in this environment")
    theirs = importlib.import_module(f"celery.{module}".rstrip("."))
    assert [name for name in MODULES[module].split() if not hasattr(theirs, name)] == []


# -- members ---------------------------------------------------------------------------------------------------------------------

APP = """
    main conf tasks control current_task backend Task AsyncResult on_configure on_after_configure on_after_finalize on_after_fork timezone
    task register_task send_task signature config_from_object config_from_envvar autodiscover_tasks add_defaults add_periodic_task
    gen_task_name finalize finalized set_current set_default now start worker_main close
"""
TASK = """
    name app backend request run abstract typing max_retries default_retry_delay autoretry_for dont_autoretry_for retry_kwargs retry_backoff
    retry_backoff_max retry_jitter rate_limit ignore_result trail send_events store_errors_even_if_ignored serializer time_limit soft_time_limit
    track_started acks_late acks_on_failure_or_timeout acks_on_failure acks_on_timeout reject_on_worker_lost throws expires priority
    resultrepr_maxsize queue exchange routing_key delay apply_async apply retry update_state s si signature subtask AsyncResult add_trail
    before_start on_success on_failure on_retry after_return shadow_name push_request pop_request MaxRetriesExceededError OperationalError
    delay_on_commit apply_async_on_commit
"""
RESULT = """
    id task_id state status result info ready successful failed get wait traceback children parent forget revoke maybe_throw maybe_reraise
    throw as_tuple as_list get_leaf collect iterdeps app backend name args kwargs worker queue retries date_done ignored TimeoutError
"""
SIGNATURE = """
    task args kwargs options subtask_type immutable name id app type delay apply_async apply clone partial freeze replace set set_immutable
    link link_error on_error flatten_links from_dict register_type reprcall TYPES
"""
REQUEST = """
    id task args kwargs retries eta expires group group_index chord chain root_id parent_id correlation_id reply_to headers timelimit callbacks
    errbacks origin shadow ignore_result argsrepr kwargsrepr stamps stamped_headers replaced_task_nesting delivery_info properties hostname
    is_eager called_directly children utc lang logfile loglevel get update
"""
CONTROL = """
    ping inspect broadcast revoke terminate rate_limit time_limit add_consumer cancel_consumer pool_grow pool_shrink pool_restart autoscale
    shutdown purge discard_all enable_events disable_events heartbeat revoke_by_stamped_headers
"""
INSPECT = """
    active reserved scheduled registered registered_tasks stats ping revoked active_queues conf query_task report clock hello memsample memdump
    objgraph
"""


def test_members(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Any) -> Any:
        return self.request

    request = f.apply().get()
    missing = {
        "app": _missing(app, APP),
        "task": _missing(f, TASK),
        "result": _missing(f.delay(), RESULT),
        "EagerResult": _missing(f.apply(), "id state status result get ready successful failed traceback forget revoke children"),
        "signature": _missing(f.s(), SIGNATURE),
        "request": _missing(request, REQUEST),
        "control": _missing(app.control, CONTROL),
        "inspect": _missing(app.control.inspect(), INSPECT),
        "conf": _missing(app.conf, "get update setdefault items keys values table humanize"),
        "tasks": _missing(app.tasks, "register unregister regular"),
    }
    assert {where: names for where, names in missing.items() if names} == {}


def _missing(thing: Any, names: str) -> list[str]:
    return [name for name in names.split() if not hasattr(thing, name)]


# -- signatures ------------------------------------------------------------------------------------------------------------------

# As Celery 5.7 declares them; what only its own machinery gives is left out.
SIGNATURES: dict[str, tuple[Callable[[], Any], str]] = {
    "Celery": (
        lambda: Celeriac,
        "main backend set_as_current broker include changes config_source task_cls autofinalize namespace strict_typing",
    ),
    "app.send_task": (lambda: Celeriac.send_task, "self name args kwargs **"),
    "app.config_from_object": (lambda: Celeriac.config_from_object, "self obj silent force namespace"),
    "app.config_from_envvar": (lambda: Celeriac.config_from_envvar, "self variable_name silent force"),
    "app.autodiscover_tasks": (lambda: Celeriac.autodiscover_tasks, "self packages related_name force"),
    "app.add_periodic_task": (lambda: Celeriac.add_periodic_task, "self schedule sig args kwargs name **"),
    "app.register_task": (lambda: Celeriac.register_task, "self task **"),
    "app.finalize": (lambda: Celeriac.finalize, "self auto"),
    "app.start": (lambda: Celeriac.start, "self argv"),
    "app.worker_main": (lambda: Celeriac.worker_main, "self argv"),
    "Task.apply_async": (lambda: Task.apply_async, "self args kwargs **"),
    "Task.apply": (lambda: Task.apply, "self args kwargs link link_error task_id retries throw **"),
    "Task.retry": (lambda: Task.retry, "self args kwargs exc throw eta countdown max_retries **"),
    "Task.update_state": (lambda: Task.update_state, "self task_id state meta **"),
    "Task.before_start": (lambda: Task.before_start, "self task_id args kwargs"),
    "Task.on_success": (lambda: Task.on_success, "self retval task_id args kwargs"),
    "Task.on_failure": (lambda: Task.on_failure, "self exc task_id args kwargs einfo"),
    "Task.on_retry": (lambda: Task.on_retry, "self exc task_id args kwargs einfo"),
    "Task.after_return": (lambda: Task.after_return, "self status retval task_id args kwargs einfo"),
    "Task.shadow_name": (lambda: Task.shadow_name, "self args kwargs options"),
    "AsyncResult": (lambda: AsyncResult, "id backend task_name app parent"),
    "AsyncResult.get": (
        lambda: AsyncResult.get,
        "self timeout propagate interval no_ack follow_parents callback on_message on_interval disable_sync_subtasks",
    ),
    "AsyncResult.revoke": (lambda: AsyncResult.revoke, "self connection terminate signal wait timeout"),
    "AsyncResult.maybe_throw": (lambda: AsyncResult.maybe_throw, "self propagate callback"),
    "EagerResult.get": (lambda: EagerResult.get, "self timeout propagate disable_sync_subtasks **"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    thing, wanted = SIGNATURES[name]
    parameters = inspect.signature(thing()).parameters
    names = [parameter for parameter in parameters if parameters[parameter].kind is not inspect.Parameter.VAR_KEYWORD]
    expected = wanted.split()
    if expected[-1] == "**":
        expected.pop()
        assert len(names) < len(parameters), "takes no further keywords"
    if name == "Celery":  # keywords only, but for the first
        assert names[0] == "main" and set(expected) <= set(names)
    else:
        assert names[: len(expected)] == expected


def test_options_of_a_call() -> None:
    options = """
        task_id countdown eta expires retry retry_policy priority queue exchange routing_key link link_error headers serializer compression
        time_limit soft_time_limit ignore_result shadow add_to_parent root_id parent_id group_id group_index reply_to producer publisher connection
        router chain chord delivery_mode mandatory immediate stamped_headers replaced_task_nesting argsrepr kwargsrepr
    """
    assert set(options.split()) - OPTIONS == set()


def test_values_that_options_take(app: Celeriac) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    soon = datetime.now(UTC) + timedelta(hours=1)
    for options in (
        {"countdown": 10}, {"countdown": 0.5}, {"eta": soon}, {"eta": soon.replace(tzinfo=None)}, {"eta": soon.isoformat()}, {"expires": 60},
        {"expires": soon}, {"expires": soon.isoformat()}, {"link": add.s(1)}, {"link": [add.s(1), add.s(2)]}, {"link_error": add.si(1, 1)},
        {"retry": False}, {"retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}},
        {"retry_policy": {"max_retries": None}}, {"queue": "priority.high"}, {"exchange": "media", "routing_key": "media.video"},
        {"serializer": "json"}, {"compression": "zlib"}, {"priority": 9}, {"headers": {"my": "header"}}, {"shadow": "shown"}, {"time_limit": 60,
        "soft_time_limit": 30}, {"ignore_result": True}, {"task_id": "any string"},
    ):  # fmt: skip
        assert add.apply_async((2, 2), **options).id  # type: ignore[arg-type]
    assert app.send_task("proj.other", [1], {"a": 2}, countdown=3, queue="q").id


def test_options_of_a_task(app: Celeriac) -> None:
    options: dict[str, Any] = {
        "name": "proj.all", "bind": True, "ignore_result": True, "max_retries": 5, "default_retry_delay": 60, "autoretry_for": (ValueError,),
        "dont_autoretry_for": (KeyError,), "retry_kwargs": {"max_retries": 7}, "retry_backoff": True, "retry_backoff_max": 700, "retry_jitter": False,
        "acks_late": True, "reject_on_worker_lost": True, "time_limit": 60, "soft_time_limit": 30, "track_started": True, "priority": 3, "queue": "q",
        "rate_limit": "10/m", "serializer": "json", "typing": False, "throws": (LookupError,), "expires": 300, "trail": False,
        "acks_on_failure_or_timeout": False, "store_errors_even_if_ignored": True, "send_events": False, "resultrepr_maxsize": 10,
        "lazy": False, "shared": False, "pydantic_like": "kept",
    }  # fmt: skip

    @app.task(**options)
    def everything(self: Any) -> str:
        return str(self.name)

    for name, value in options.items():
        if name not in ("bind", "lazy", "shared"):
            assert getattr(everything, name) == value, name
    assert everything() == "proj.all"


# -- the rest --------------------------------------------------------------------------------------------------------------------


def test_states_compare_as_in_celery() -> None:
    assert states.READY_STATES == {"SUCCESS", "FAILURE", "REVOKED"}
    assert states.UNREADY_STATES == {"PENDING", "RECEIVED", "STARTED", "REJECTED", "RETRY"}
    assert states.EXCEPTION_STATES == {"RETRY", "FAILURE", "REVOKED"}
    assert states.PROPAGATE_STATES == {"FAILURE", "REVOKED"}
    order = ["SUCCESS", "FAILURE", "PROGRESS", "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING"]
    assert sorted(order, key=states.precedence) == order
    assert states.state("SUCCESS") > states.state("PROGRESS") > states.state("PENDING")


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("task_default_queue", "celery"), ("task_time_limit", None), ("task_soft_time_limit", None), ("task_track_started", False),
        ("task_ignore_result", False), ("task_always_eager", False), ("task_eager_propagates", False), ("task_serializer", "json"),
        ("result_serializer", "json"), ("accept_content", ("json",)), ("result_expires", 86400.0), ("timezone", None),
        ("task_create_missing_queues", True), ("task_publish_retry", True), ("worker_concurrency", None), ("worker_pool", "prefork"),
        ("worker_max_tasks_per_child", None), ("imports", ()), ("include", ()),
    ],
)  # fmt: skip
def test_defaults_that_are_celerys(name: str, default: Any) -> None:
    assert getattr(Settings.build({}), name) == default


def test_every_setting_of_celery_is_understood() -> None:
    defaults = pytest.importorskip("celery.app.defaults", reason="Celery is not installed in this environment")
    names = sorted(defaults.DEFAULTS)
    Settings.build(dict.fromkeys(names))


COMMANDS = {
    "worker": "-n --hostname -D --detach -S --statedb -l --loglevel -O --optimization --prefetch-multiplier -c --concurrency -P --pool -E "
    "--task-events --time-limit --soft-time-limit --max-tasks-per-child --max-memory-per-child --pool-start-method --purge --discard -Q --queues "
    "-X --exclude-queues -I --include --without-gossip --without-mingle --without-heartbeat --heartbeat-interval --autoscale -B --beat "
    "-s --schedule-filename --scheduler -f --logfile --pidfile --uid --gid --umask --executable --disable-prefetch",
    "inspect": "-t --timeout -d --destination -j --json",
    "control": "-t --timeout -d --destination -j --json",
    "status": "-t --timeout -d --destination -j --json",
    "purge": "-f --force -Q --queues -X --exclude-queues",
    "call": "-a --args -k --kwargs --eta --countdown --expires --serializer --queue --exchange --routing-key",
    "result": "-t --task --traceback",
    "shell": "-I --ipython -B --bpython --python",
    "report": "",
    "list": "",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_of_the_command_line(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)  # type: ignore[attr-defined]
    assert command is not None
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert [flag for flag in COMMANDS[name].split() if flag not in known] == []


def test_global_flags_of_the_command_line() -> None:
    known = {flag for parameter in cli.params for flag in parameter.opts}
    wanted = "-A --app -b --broker --result-backend --loader --config --workdir -C --no-color -q --quiet --version --skip-checks"
    assert [flag for flag in wanted.split() if flag not in known] == []
