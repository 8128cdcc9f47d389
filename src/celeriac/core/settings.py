"""Settings: one table, built once, checked whole, then read-only.

The table is the class `Settings`: each line is a typed attribute with its default, its check, one sentence, and Celery's older name of it. Names that Celery has
too mean the same here; where a default differs, the sentence says so. Nothing reads the environment by itself: see `from_environ`.

To add a setting, add a line to the class; reports, docs and checks follow.
"""

from __future__ import annotations

import datetime as _datetime
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from . import serialize
from .celery_settings import FOREIGN_PREFIXES, MEANINGLESS
from .errors import ImproperlyConfigured
from .routing import Queue, Router, queues_from

Check = Callable[[Any], Any]
"""Returns the value as the program sees it, or raises ValueError that goes on after "… must be"."""


class Setting:
    """One line of the table."""

    __slots__ = ("celery_default", "check", "default", "env", "kind", "name", "old_name", "sentence")

    def __init__(self, kind: str, check: Check, default: Any, sentence: str, old_name: str, env: str, celery_default: Any) -> None:
        self.name = ""
        self.kind = kind
        """What may be given, in words: `seconds`, `true or false`."""
        self.check = check
        self.default = default
        self.sentence = sentence
        self.old_name = old_name
        self.env = env
        """The environment variable that goes before everything else."""
        self.celery_default = celery_default
        """Celery's default where it is another one; else the same as ours."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


_SAME = object()


def _setting(
    type_of: tuple[str, Check], default: Any, sentence: str, *, old: str = "", env: str = "", celery: Any = _SAME, optional: bool = False
) -> Any:
    kind, check = type_of
    if optional or default is None:
        kind, check = f"{kind}, or None", _or_none(check)
    return Setting(kind, check, default, sentence, old, env, default if celery is _SAME else celery)


# -- checks ------------------------------------------------------------------------------------------------------------


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _check_flag(value: Any) -> bool:
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise ValueError("True or False")


def _check_seconds(least: float, most: float, *, whole: bool = False) -> Check:
    def check(value: Any) -> float:
        seconds = value.total_seconds() if isinstance(value, _datetime.timedelta) else value
        if type(seconds) not in (int, float) or not least <= seconds <= most:
            raise ValueError(f"seconds (a number or a timedelta){_range(least, most)}")
        return float(seconds)

    return check


def _check_whole(least: float, most: float) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number{_range(least, most)}")
        return value

    return check


def _range(least: float, most: float) -> str:
    if most == _FOREVER:
        return f", at least {least:g}"
    return f" from {least:g} to {most:g}"


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return str.__str__(value)


def _check_texts(value: Any) -> tuple[str, ...]:
    """One text alone is a list of one: `imports = ("shop.tasks")` lacks a comma, and everybody knows what was meant."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts")
    return tuple(value)


def _check_one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(map(repr, choices)))
        return str(value)

    return check


def _check_mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a dict")
    return MappingProxyType(dict(value))


def _check_anything(value: Any) -> Any:
    return value


def _check_url(value: Any) -> str:
    """Several addresses of one broker may be a list, or joined by `;`."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        value = ";".join(value)
    if not isinstance(value, str) or not value or value.isspace():
        raise ValueError("a URL such as sqlite:///celeriac.db or redis://localhost:6379/0")
    return str.__str__(value)


def _check_accept(value: Any) -> tuple[str, ...]:
    names = []
    for name in _check_texts(value):
        known = serialize.serializer_named(name)
        if known is None:
            raise ValueError(f"a list of serializers ({', '.join(serialize.CONTENT_TYPES)})")
        names.append(known)
    if not names:
        raise ValueError("a list with at least one serializer")
    return tuple(dict.fromkeys(names))


def _check_serializer(value: Any) -> str:
    known = serialize.serializer_named(value) if isinstance(value, str) else None
    if known is None:
        raise ValueError(f"one of {', '.join(map(repr, serialize.CONTENT_TYPES))}")
    return known


def _check_zone(value: Any) -> str:
    from zoneinfo import ZoneInfo

    name = value if isinstance(value, str) else getattr(value, "key", None) or getattr(value, "zone", None) or str(value)
    try:
        ZoneInfo(name)
    except Exception:
        raise ValueError("the name of a time zone such as 'Europe/Berlin' or 'UTC'") from None
    return str(name)


def _check_queues(value: Any) -> tuple[Queue, ...]:
    try:
        return queues_from(value)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"a list of queues: {problem}") from None


def _check_routes(value: Any) -> Any:
    try:
        Router(value)
    except ImproperlyConfigured as problem:
        raise ValueError(f"routes: {str(problem).removeprefix('task_routes: ').removesuffix('.')}") from None
    return value


_check_known_pool = _check_one_of("prefork", "threads", "solo", "gevent", "eventlet", "asyncio")


def _check_pool(value: Any) -> str:
    if value == "processes":  # Celery's other name of it
        return "prefork"
    return str(_check_known_pool(value))


_POLICY_NUMBERS = ("max_retries", "interval_start", "interval_step", "interval_max")


def _check_retry_policy(value: Any) -> Mapping[str, Any]:
    policy = _check_mapping(value)
    for name, number in policy.items():
        if name not in (*_POLICY_NUMBERS, "retry_errors", "timeout"):
            raise ValueError(f"a dict of {', '.join(_POLICY_NUMBERS)} (without {name!r})")
        if name in _POLICY_NUMBERS and number is not None and (type(number) not in (int, float) or number < 0):
            raise ValueError(f"a dict of numbers, at least 0 ({name} is {_brief(number)})")
    return policy


_ENTRY = dict.fromkeys((
    "task", "schedule", "args", "kwargs", "options", "relative", "enabled", "description",
    "misfire", "misfire_window", "misfire_grace", "overlap", "jitter", "starts_at", "ends_at", "max_runs", "expires",
)).keys()  # fmt: skip
"""What an entry of `beat_schedule` may say: Celery's words, and the policies of docs/schedules.md."""


def _check_schedule(value: Any) -> Mapping[str, Any]:
    schedule = _check_mapping(value)
    for name, entry in schedule.items():
        if isinstance(entry, Mapping):
            missing = [needed for needed in ("task", "schedule") if needed not in entry]
            unknown = sorted(map(str, entry.keys() - _ENTRY))
            if missing or unknown:
                raise ValueError(
                    f"a dict of entries with {', '.join(_ENTRY)}"
                    f" (entry {name!r} {'lacks ' + ' and '.join(missing) if missing else 'has ' + ', '.join(map(repr, unknown))})"
                )
            if problem := _when_problem(entry["schedule"]):
                raise ValueError(f"a dict of entries with a schedule that comes (entry {name!r}: {problem})")
    return schedule


def _when_problem(when: Any) -> str:
    """What is wrong with what an entry gives as its schedule; mostly nothing."""
    if isinstance(when, str):
        from .schedules import crontab

        try:
            crontab.from_string(when)
        except ValueError as error:
            return str(error).rstrip(".")
        return ""
    seconds = when.total_seconds() if isinstance(when, _datetime.timedelta) else when
    if type(seconds) in (int, float):
        return "" if seconds > 0 else f"an interval is longer than 0 seconds, not {when}"
    if hasattr(when, "is_due") and not isinstance(when, type):
        return ""
    return f"a schedule is seconds, a timedelta, a cron string, or a crontab, schedule, solar or clocked, not {_brief(when)}"


def _check_level(value: Any) -> str:
    name = logging.getLevelName(value) if type(value) is int else value
    if not isinstance(name, str) or name.upper() not in logging.getLevelNamesMapping():
        raise ValueError("a log level such as 'WARNING'")
    return name.upper()


def _check_rate(value: Any) -> str | float:
    """`10/s`, `100/m`, `1000/h`, or a number a second."""
    if type(value) in (int, float) and value >= 0:
        return float(value)
    if isinstance(value, str):
        number, _, unit = value.partition("/")
        try:
            if float(number) >= 0 and unit in ("", "s", "m", "h"):
                return value
        except ValueError:
            pass
    raise ValueError("a rate such as '10/s', '100/m' or '1000/h'")


_FOREVER = float("inf")
_FLAG = ("true or false", _check_flag)
_SECONDS = ("seconds", _check_seconds(0, _FOREVER))
_POSITIVE_SECONDS = ("seconds", _check_seconds(0.001, _FOREVER))
_COUNT = ("number", _check_whole(1, _FOREVER))
_TEXT = ("text", _check_text)
_TEXTS = ("list of texts", _check_texts)
_MAPPING = ("dict", _check_mapping)
_ANYTHING = ("see the documentation", _check_anything)
_URL = ("URL", _check_url)
_PRIORITY = ("priority 0-9", _check_whole(0, 9))
_EMPTY: Mapping[str, Any] = MappingProxyType({})


# -- the table ---------------------------------------------------------------------------------------------------------


class Settings:
    """All settings of one app, with their defaults filled in. Read-only.

    Read by attribute (`conf.task_acks_late`), item (`conf["task_acks_late"]`, `conf["CELERY_ACKS_LATE"]`) or `conf.get(name, default)`.
    """

    # -- where messages and results are

    broker_url: str = _setting(
        _URL, "sqlite:///celeriac.db", "Where messages wait. Celery: amqp://.", old="BROKER_URL", env="CELERY_BROKER_URL", celery=None
    )
    broker_transport_options: Mapping[str, Any] = _setting(
        _MAPPING, _EMPTY, "Options of the broker's engine.", old="BROKER_TRANSPORT_OPTIONS"
    )
    broker_use_ssl: Any = _setting(
        _ANYTHING,
        False,
        "Celery: TLS to the broker. Here the URL says it (rediss://, amqps://); set without such a URL, this is an error.",
        old="BROKER_USE_SSL",
    )
    broker_publish_timeout: float = _setting(
        _POSITIVE_SECONDS, 1.0, "After so long, a call that cannot be sent raises EnqueueError.", celery=None
    )
    result_backend: str | None = _setting(
        _TEXT,
        None,
        "Where results are kept: a URL; None or 'rpc://': the broker's own engine; 'disabled': nowhere. Celery: None is nowhere.",
        old="CELERY_RESULT_BACKEND",
        env="CELERY_RESULT_BACKEND",
    )
    result_backend_transport_options: Mapping[str, Any] = _setting(
        _MAPPING, _EMPTY, "Options of the engine that keeps results.", old="CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS"
    )
    result_expires: float | None = _setting(
        _SECONDS, 86400.0, "Results are thrown away after so long; None or 0: never.", old="CELERY_TASK_RESULT_EXPIRES", optional=True
    )
    result_serializer: str = _setting(
        ("json", _check_one_of("json", serialize.JSON)), "json", "Results are always JSON.", old="CELERY_RESULT_SERIALIZER"
    )
    cache_backend: str | None = _setting(
        _TEXT, None, "The Django cache that result_backend='django-cache' keeps results in.", old="CELERY_CACHE_BACKEND"
    )
    cache_backend_options: Mapping[str, Any] = _setting(_MAPPING, _EMPTY, "Options of that cache.", old="CELERY_CACHE_BACKEND_OPTIONS")
    revokes_expire: float = _setting(
        _POSITIVE_SECONDS,
        10800.0,
        "How long an id is remembered that was revoked before its task arrived.",
        env="CELERY_WORKER_REVOKE_EXPIRES",
        celery=None,
    )

    # -- messages

    accept_content: tuple[str, ...] = _setting(
        ("list of serializers", _check_accept),
        ("json",),
        "Formats that a worker decodes. pickle runs code that others send.",
        old="CELERY_ACCEPT_CONTENT",
    )
    task_serializer: str = _setting(
        ("serializer", _check_serializer), "json", "Format in which tasks are called.", old="CELERY_TASK_SERIALIZER"
    )
    task_repr_maxlevels: int = _setting(
        _COUNT, 3, "Depth to which arguments are shown in logs and dashboards.", old="CELERY_REPR_MAXLEVELS"
    )
    task_publish_retry: bool = _setting(
        _FLAG, True, "Try again, within broker_publish_timeout, when sending fails.", old="CELERY_TASK_PUBLISH_RETRY"
    )
    task_publish_retry_policy: Mapping[str, Any] = _setting(
        ("dict", _check_retry_policy),
        MappingProxyType({"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}),
        "How often, and with which pauses in seconds.",
        old="CELERY_TASK_PUBLISH_RETRY_POLICY",
    )

    task_outbox: bool = _setting(
        _FLAG, True, "Django: what is sent within a transaction of the default database is kept in it, and published after the commit."
    )

    # -- queues

    task_default_queue: str = _setting(_TEXT, "celery", "Queue of tasks that nothing else routes.", old="CELERY_DEFAULT_QUEUE")
    task_default_exchange: str | None = _setting(
        _TEXT, None, "RabbitMQ: exchange of tasks; None: as the queue.", old="CELERY_DEFAULT_EXCHANGE"
    )
    task_default_routing_key: str | None = _setting(
        _TEXT, None, "RabbitMQ: routing key of tasks; None: as the queue.", old="CELERY_DEFAULT_ROUTING_KEY"
    )
    task_default_priority: int | None = _setting(
        _PRIORITY, None, "Priority of tasks, 9 first on every engine; None: 0.", old="CELERY_DEFAULT_PRIORITY"
    )
    task_inherit_parent_priority: bool = _setting(
        _FLAG, False, "Tasks that a task sends have its priority.", old="CELERY_INHERIT_PARENT_PRIORITY"
    )
    task_queues: tuple[Queue, ...] | None = _setting(
        ("list of queues", _check_queues), None, "Queues that workers read; None: the default queue.", old="CELERY_QUEUES"
    )
    task_create_missing_queues: bool = _setting(
        _FLAG, True, "False: sending to a queue that task_queues does not name raises QueueNotFound.", old="CELERY_CREATE_MISSING_QUEUES"
    )
    task_routes: Any = _setting(
        ("routes", _check_routes),
        None,
        "Which task goes to which queue: a dict of names, globs and patterns, a function, or a list of them.",
        old="CELERY_ROUTES",
    )

    # -- what a task does by default

    task_acks_late: bool = _setting(
        _FLAG,
        True,
        "A message is gone only when its task has ended, so a crash repeats it. False: at most once. Celery: False.",
        old="CELERY_ACKS_LATE",
        celery=False,
    )
    task_acks_on_failure_or_timeout: bool = _setting(
        _FLAG, True, "False: a task that failed for good goes to the dead letters.", old="CELERY_ACKS_ON_FAILURE_OR_TIMEOUT"
    )
    task_acks_on_failure: bool | None = _setting(
        _FLAG, None, "The same for exceptions only; None: as task_acks_on_failure_or_timeout.", old="CELERY_ACKS_ON_FAILURE"
    )
    task_acks_on_timeout: bool | None = _setting(
        _FLAG, None, "The same for time limits only; None: as task_acks_on_failure_or_timeout.", old="CELERY_ACKS_ON_TIMEOUT"
    )
    task_max_crashes: int = _setting(
        _COUNT, 3, "A task whose process died so often becomes a dead letter. Celery: has no such limit.", celery=None
    )
    task_unknown_expires: float = _setting(
        _SECONDS, 3600.0, "A task that no worker knows becomes a dead letter after so long. Celery: at once.", celery=0.0
    )
    task_time_limit: float | None = _setting(_POSITIVE_SECONDS, None, "A task is killed after so long.", old="CELERYD_TASK_TIME_LIMIT")
    task_soft_time_limit: float | None = _setting(
        _POSITIVE_SECONDS, None, "SoftTimeLimitExceeded is raised in a task after so long.", old="CELERYD_TASK_SOFT_TIME_LIMIT"
    )
    task_default_rate_limit: str | float | None = _setting(
        ("rate", _check_rate),
        None,
        "How often a task may start in each worker: '10/s', '100/m' or '1000/h'.",
        old="CELERY_DEFAULT_RATE_LIMIT",
    )
    task_ignore_result: bool = _setting(_FLAG, False, "Keep no results.", old="CELERY_IGNORE_RESULT")
    task_store_errors_even_if_ignored: bool = _setting(
        _FLAG, False, "Keep errors of tasks whose results are not kept.", old="CELERY_STORE_ERRORS_EVEN_IF_IGNORED"
    )
    task_track_started: bool = _setting(_FLAG, False, "Record the state STARTED.", old="CELERY_TRACK_STARTED")
    task_annotations: Any = _setting(
        _ANYTHING, None, "Attributes of tasks, by name: a dict, an object, or a list of them.", old="CELERY_ANNOTATIONS"
    )
    task_always_eager: bool = _setting(_FLAG, False, "Calls run at once, in the program that calls.", old="CELERY_ALWAYS_EAGER")
    task_eager_propagates: bool = _setting(
        _FLAG, False, "What an eager task raises reaches the caller.", old="CELERY_EAGER_PROPAGATES_EXCEPTIONS"
    )
    task_store_eager_result: bool = _setting(_FLAG, False, "Keep the results of eager tasks.", old="CELERY_STORE_EAGER_RESULT")
    task_allow_error_cb_on_chord_header: bool = _setting(
        _FLAG, False, "link_error of a chord applies to its header too.", old="CELERY_ALLOW_ERROR_CB_ON_CHORD_HEADER"
    )

    # -- workers

    worker_pool: str = _setting(
        ("pool", _check_pool), "prefork", "prefork, threads, solo, gevent, eventlet or asyncio.", old="CELERYD_POOL"
    )
    worker_concurrency: int | None = _setting(
        _COUNT, None, "How many tasks run at once; None: as suits the pool.", old="CELERYD_CONCURRENCY"
    )
    worker_pool_start_method: str = _setting(
        ("fork or spawn", _check_one_of("fork", "spawn")), "fork", "How processes are started.", old="CELERYD_POOL_START_METHOD"
    )
    worker_max_tasks_per_child: int | None = _setting(
        _COUNT, None, "A process is replaced after so many tasks.", old="CELERYD_MAX_TASKS_PER_CHILD"
    )
    worker_max_memory_per_child: int | None = _setting(
        ("KiB", _check_whole(1, _FOREVER)),
        None,
        "A process that has come to use more (KiB) is replaced.",
        old="CELERYD_MAX_MEMORY_PER_CHILD",
    )
    worker_autoscale_keepalive: float = _setting(
        _SECONDS, 30.0, "With --autoscale: a process is ended after it has been idle for so long.", env="AUTOSCALE_KEEPALIVE"
    )
    worker_heartbeat_interval: float = _setting(
        _POSITIVE_SECONDS, 5.0, "How often a worker renews its lease. Celery: has no leases.", celery=None
    )
    worker_lease_duration: float = _setting(
        _POSITIVE_SECONDS,
        15.0,
        "A worker that was silent for so long is taken for dead, and its tasks run elsewhere. Celery: has no leases.",
        celery=None,
    )
    worker_soft_shutdown_timeout: float = _setting(
        _SECONDS,
        25.0,
        "How long a stopping worker waits for running tasks before it gives them back. Celery: waits for ever.",
        old="CELERYD_SOFT_SHUTDOWN_TIMEOUT",
        celery=0.0,
    )
    worker_disable_rate_limits: bool = _setting(_FLAG, False, "Rate limits do not apply.", old="CELERY_DISABLE_RATE_LIMITS")
    worker_enable_remote_control: bool = _setting(_FLAG, True, "Workers answer inspect and control.", old="CELERY_ENABLE_REMOTE_CONTROL")
    worker_hijack_root_logger: bool = _setting(
        _FLAG,
        False,
        "Replace the handlers that the program gave to the root logger. Celery: True.",
        old="CELERYD_HIJACK_ROOT_LOGGER",
        celery=True,
    )
    worker_log_color: bool | None = _setting(_FLAG, None, "Colours in logs; None: on terminals.", old="CELERYD_LOG_COLOR")
    worker_log_format: str = _setting(
        _TEXT, "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s", "Format of log lines.", old="CELERYD_LOG_FORMAT"
    )
    worker_log_datefmt: str | None = _setting(_TEXT, None, "Format of times in log lines.", old="CELERYD_LOG_DATEFMT")
    worker_task_log_format: str = _setting(
        _TEXT,
        "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s",
        "Format of lines that tasks log.",
        old="CELERYD_TASK_LOG_FORMAT",
    )
    worker_task_log_datefmt: str | None = _setting(_TEXT, None, "Format of times in lines that tasks log.", old="CELERYD_TASK_LOG_DATEFMT")
    worker_redirect_stdouts: bool = _setting(_FLAG, True, "What tasks print is logged.", old="CELERY_REDIRECT_STDOUTS")
    worker_redirect_stdouts_level: str = _setting(
        ("log level", _check_level), "WARNING", "At which level.", old="CELERY_REDIRECT_STDOUTS_LEVEL"
    )
    imports: tuple[str, ...] = _setting(_TEXTS, (), "Modules that a worker imports.", old="CELERY_IMPORTS")
    include: tuple[str, ...] = _setting(_TEXTS, (), "More modules that a worker imports.", old="CELERY_INCLUDE")

    # -- times and schedules

    timezone: str | None = _setting(
        ("time zone", _check_zone), None, "Zone in which schedules are read; None: UTC, in Django TIME_ZONE.", old="CELERY_TIMEZONE"
    )
    beat_schedule: Mapping[str, Any] = _setting(
        ("dict of entries", _check_schedule), _EMPTY, "What beat sends, and when.", old="CELERYBEAT_SCHEDULE"
    )
    beat_scheduler: str | None = _setting(
        _TEXT,
        None,
        "Celery: the class that knows what is due. Here the engine knows; a name given is mentioned at the start of beat, and not used.",
        old="CELERYBEAT_SCHEDULER",
        celery="celery.beat:PersistentScheduler",
    )
    beat_max_loop_interval: float = _setting(
        _SECONDS,
        0.0,
        "Beat looks at its schedule at least so often, and never less than every 5 s; 0: every second.",
        old="CELERYBEAT_MAX_LOOP_INTERVAL",
    )
    beat_cron_starting_deadline: float | None = _setting(
        _SECONDS, None, "A crontab occurrence that was missed by more than this is skipped.", old="CELERYBEAT_CRON_STARTING_DEADLINE"
    )
    beat_ledger_expires: float | None = _setting(
        _SECONDS,
        7 * 86400.0,
        "How long the ledger keeps a line for each occurrence of the schedule; None or 0: for ever. Celery: has no ledger.",
        celery=None,
        optional=True,
    )

    # -- building --------------------------------------------------------------------------------------------------

    remarks: list[str]
    """One line for each given setting that has no meaning here."""

    @classmethod
    def build(cls, given: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Settings:
        """Checks everything that is given and fills in the defaults. `overrides` (from the environment, the command line) go before `given`.

        Names may be new or Celery's old upper-case ones, but not both. Raises ImproperlyConfigured, one line for each problem.
        """
        problems: list[str] = []
        named = {**_by_name(given, problems), **_by_name(overrides or {}, problems)}
        _join_broker_parts(named, problems)
        values, remarks = _checked(named, problems)
        problems.extend(_impossible_pairs(values))
        if problems:
            raise ImproperlyConfigured("\n".join(problems))
        settings = cls.__new__(cls)
        vars(settings).update(values, remarks=remarks, _given=named)
        return settings

    def __init__(self) -> None:
        vars(self).update(vars(Settings.build({})))

    def __setattr__(self, name: str, value: Any) -> None:
        raise ImproperlyConfigured(
            f"Settings cannot be changed once the app has been used. Set {name} before the first task is sent or run."
        )

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    # -- reading ---------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Only comes here for what is not in the table under this name.
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(unknown_name(name)) from None

    def __getitem__(self, name: str) -> Any:
        known = _new_name(name)
        if known is None:
            raise KeyError(name)
        if known in SETTINGS:
            return vars(self)[known]
        return vars(self)["_given"].get(known)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def first(self, *names: str) -> Any:
        """The first of these settings that is not None."""
        return next((value for name in names if (value := self.get(name)) is not None), None)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _new_name(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(SETTINGS)

    def __len__(self) -> int:
        return len(SETTINGS)

    def keys(self) -> Iterable[str]:
        return SETTINGS.keys()

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, vars(self)[name]) for name in SETTINGS)

    def values(self) -> Iterator[Any]:
        return (vars(self)[name] for name in SETTINGS)

    # -- reports ---------------------------------------------------------------------------------------------------

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """The settings that were given, or all; secrets masked."""
        shown = {name: value for name, value in self.items() if with_defaults or value != SETTINGS[name].default}
        return {name: masked(name, value) for name, value in shown.items()} if censored else shown

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """`table`, a line for each."""
        return "\n".join(f"{name}: {_shown(value)}" for name, value in self.table(with_defaults, censored).items())

    def __repr__(self) -> str:
        return f"<Settings {self.table()!r}>"


SETTINGS: Mapping[str, Setting] = MappingProxyType({name: line for name, line in vars(Settings).items() if isinstance(line, Setting)})
"""The table, in its order."""

_BROKER_PARTS = {
    "broker_transport": "BROKER_TRANSPORT",
    "broker_user": "BROKER_USER",
    "broker_password": "BROKER_PASSWORD",
    "broker_host": "BROKER_HOST",
    "broker_port": "BROKER_PORT",
    "broker_vhost": "BROKER_VHOST",
}
_BROKER_URLS = ("broker_read_url", "broker_write_url")
"""What Celery has beside broker_url; turned into it."""

_OLD_NAMES: dict[str, str] = {
    **{line.old_name: name for name, line in SETTINGS.items() if line.old_name},
    **{old: name for name, (old, _) in MEANINGLESS.items() if old},
    **{old: name for name, old in _BROKER_PARTS.items()},
}

_KNOWN = frozenset({*SETTINGS, *MEANINGLESS, *_BROKER_PARTS, *_BROKER_URLS})


# -- names -------------------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """The present name of a setting, for an old or a new one. ImproperlyConfigured suggests what was meant."""
    known = _new_name(name)
    if known is None:
        raise ImproperlyConfigured(unknown_name(name))
    return known


def check_values(given: Mapping[str, Any]) -> None:
    """Checks names and values each by itself, for settings that come one by one. Pairs are checked when all are there, by `Settings.build`."""
    problems: list[str] = []
    _checked({name: value for name, value in _by_name(given, problems).items() if name in SETTINGS or name in MEANINGLESS}, problems)
    if problems:
        raise ImproperlyConfigured("\n".join(problems))


def unknown_name(name: str) -> str:
    """The sentence about a setting that does not exist."""
    known = _new_name(name.removeprefix("CELERY_")) if name.startswith("CELERY_") else None
    if known is not None:
        return f"Unknown setting {name!r}. Did you mean {known!r}, or config_from_object(…, namespace='CELERY')?"
    suggestion = _similar(name)
    return f"Unknown setting {name!r}.{f' Did you mean {suggestion!r}?' if suggestion else ''}"


def _new_name(name: str) -> str | None:
    if name in _KNOWN:
        return name
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    lowered = name.lower()
    return lowered if name.isupper() and lowered in _KNOWN else None


def _similar(name: str) -> str | None:
    from difflib import get_close_matches

    lowered = name.lower()
    # What has a meaning here is what was most likely meant.
    for names in (SETTINGS, _KNOWN):
        for candidate in (lowered, lowered.removeprefix("celery_"), f"task_{lowered}", f"worker_{lowered}"):
            if candidate in names:
                return candidate
            found = get_close_matches(candidate, names, n=1, cutoff=0.8)
            if found:
                return found[0]
    return None


# -- where settings come from ------------------------------------------------------------------------------------------


def read_settings(source: Any, namespace: str | None = None) -> dict[str, Any]:
    """What a mapping, a module or an object says, by names that `Settings.build` takes.

    With `namespace="CELERY"`: `CELERY_TASK_ACKS_LATE` is task_acks_late, only new names count, and what other packages call `CELERY_…` is left alone.
    Without: a mapping's names are all taken; of a module or an object those that are settings, or look as if they were meant to be.
    Raises ImproperlyConfigured, with a line for each name that is unknown, and when old and new names are mixed.
    """
    is_mapping = isinstance(source, Mapping)
    names = [name for name in (source if is_mapping else dir(source)) if isinstance(name, str) and not name.startswith("__")]

    def value_of(name: str) -> Any:  # not of all names: to look at some of Django's settings is deprecated
        return source[name] if is_mapping else getattr(source, name, None)

    if namespace:
        chosen = _names_in_namespace(names, namespace if namespace.endswith("_") else f"{namespace}_")
        return {known: value_of(name) for name, known in chosen.items()}
    problems: list[str] = []
    values = {name: value_of(name) for name in names if is_mapping or _new_name(name) is not None or name.startswith(_MEANT_PREFIXES)}
    named = _by_name({name: value for name, value in values.items() if is_mapping or _is_meant(name, value)}, problems)
    if problems:
        raise ImproperlyConfigured("\n".join(problems))
    return named


def _names_in_namespace(names: Iterable[str], prefix: str) -> dict[str, str]:
    chosen: dict[str, str] = {}
    problems: list[str] = []
    for name in names:
        if not name.startswith(prefix):
            continue
        known = name.removeprefix(prefix).lower()
        if known in _KNOWN:
            chosen[name] = known
        elif name in _OLD_NAMES:
            problems.append(
                f"{name!r} is the old name of a setting. With namespace={prefix[:-1]!r} write {prefix}{_OLD_NAMES[name].upper()}."
            )
        elif not known.startswith(FOREIGN_PREFIXES):
            suggestion = _similar(known)
            problems.append(f"Unknown setting {name!r}.{f' Did you mean {(prefix + suggestion.upper())!r}?' if suggestion else ''}")
    if problems:
        raise ImproperlyConfigured("\n".join(problems))
    return chosen


_MEANT_PREFIXES = ("accept_", "beat_", "broker_", "result_", "task_", "worker_", "CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_")


def _is_meant(name: str, value: Any) -> bool:
    """Whether a name in a module is a setting, or one misspelt, rather than a helper or an import (`from django.utils import timezone`)."""
    if type(value).__name__ == "module":
        return False
    if _new_name(name) is not None:
        return True
    if callable(value):
        return False
    return not name.removeprefix("CELERY_").lower().startswith(FOREIGN_PREFIXES)


def from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the environment names; they go before all others."""
    found: dict[str, Any] = {}
    for name, line in SETTINGS.items():
        text = environ.get(line.env, "") if line.env else ""
        if text:
            found[name] = text if line.check in (_check_url, _check_text) or line.kind.startswith("text") else _number(text)
    return found


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


# -- checking ----------------------------------------------------------------------------------------------------------


def _by_name(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The given values by present names. Old and new names in one place mean that half of a move was forgotten."""
    named: dict[str, Any] = {}
    written: dict[str, str] = {}
    for name, value in given.items():
        known = _new_name(name)
        if known is None:
            problems.append(unknown_name(name))
            continue
        if known in written:
            problems.append(f"{written[known]} and {name} are the same setting. Keep {known}.")
        written[known] = name
        named[known] = value
    old = {known: name for known, name in written.items() if name not in _KNOWN}
    if old and len(old) != len(written):
        renamed = ", ".join(f"{name} → {known}" for known, name in sorted(old.items()))
        problems.append(f"Old and new names of settings are mixed. Use the new ones: {renamed}.")
    return named


def _join_broker_parts(named: dict[str, Any], problems: list[str]) -> None:
    """Makes broker_url of what Celery lets people say in parts. broker_url itself goes before them."""
    urls = set()
    for name in _BROKER_URLS:
        url = named.pop(name, None)
        if isinstance(url, str):
            urls.add(url)
        elif url is not None:
            problems.append(f"{name} must be a URL, not {_brief(url)}.")
    parts = {name: named.pop(name) for name in _BROKER_PARTS if name in named}
    if named.get("broker_url") is not None:
        return
    if len(urls) > 1:
        problems.append("broker_read_url and broker_write_url differ, but one broker has to serve both. Set broker_url.")
    elif urls:
        named["broker_url"] = urls.pop()
    elif any(value is not None for value in parts.values()):
        named["broker_url"] = _url_of(parts)


def _url_of(parts: Mapping[str, Any]) -> str:
    from urllib.parse import quote

    login = ":".join(quote(str(parts[name]), safe="") for name in ("broker_user", "broker_password") if parts.get(name))
    if parts.get("broker_password") and not parts.get("broker_user"):
        login = f":{login}"
    port = f":{parts['broker_port']}" if parts.get("broker_port") else ""
    vhost = str(parts.get("broker_vhost") or "").removeprefix("/")
    host = parts.get("broker_host") or "localhost"
    return f"{parts.get('broker_transport') or 'amqp'}://{login}{'@' if login else ''}{host}{port}/{vhost}"


def _checked(named: Mapping[str, Any], problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    values = {name: line.default for name, line in SETTINGS.items()}
    remarks = []
    for name, value in named.items():
        line = SETTINGS.get(name)
        if line is None:
            remarks.append(f"{name} has no effect. {MEANINGLESS[name][1]}")
        elif value is not None or line.kind.endswith(", or None"):  # None where it means nothing: not given
            try:
                values[name] = line.check(value)
            except ValueError as problem:
                problems.append(f"{name} must be {problem}, not {_brief(masked(name, value))}.")
    if values["result_expires"] == 0:
        values["result_expires"] = None
    return values, remarks


def _impossible_pairs(values: Mapping[str, Any]) -> Iterator[str]:
    soft, hard = values["task_soft_time_limit"], values["task_time_limit"]
    if soft is not None and hard is not None and soft >= hard:
        yield f"task_soft_time_limit ({soft:g} s) must be shorter than task_time_limit ({hard:g} s), or no task could ever clean up."
    lease, beat = values["worker_lease_duration"], values["worker_heartbeat_interval"]
    if lease <= 2 * beat:
        yield (
            f"worker_lease_duration ({lease:g} s) must be more than twice worker_heartbeat_interval ({beat:g} s),"
            " or one late heartbeat costs a live worker its tasks."
        )
    serializer, accepted = values["task_serializer"], values["accept_content"]
    if serializer not in accepted:
        yield f"task_serializer {serializer!r} is not in accept_content ({', '.join(accepted)}), so no worker would read what is sent."
    queues = values["task_queues"]
    if queues and not values["task_create_missing_queues"] and values["task_default_queue"] not in {queue.name for queue in queues}:
        yield (
            f"task_default_queue {values['task_default_queue']!r} is not in task_queues ({', '.join(queue.name for queue in queues)}),"
            " and task_create_missing_queues is off."
        )
    scheme = values["broker_url"].partition("://")[0]
    if values["broker_use_ssl"] and not any(mark in scheme for mark in ("rediss", "amqps")) and "sslmode=" not in values["broker_url"]:
        yield (
            f"broker_use_ssl is set, but broker_url ({scheme}://) says nothing of TLS, so it would not be used. "
            "Say it in the URL: rediss://, amqps://, postgresql://…?sslmode=verify-full."
        )
    if values["result_backend"] == "django-cache" and values["cache_backend"] == "":
        yield "result_backend is 'django-cache', but cache_backend is empty."


# -- secrets -----------------------------------------------------------------------------------------------------------

_SECRET_WORDS = ("api", "token", "key", "secret", "pass", "signature", "credential")
_MASK = "********"


def masked(name: str, value: Any) -> Any:
    """A value as it may be shown to anybody: without passwords in URLs, and without what has a secret's name."""
    if isinstance(value, str) and "://" in value:
        return mask_url(value)
    words = name.lower()
    if any(word in words for word in _SECRET_WORDS) and not words.endswith("routing_key") and isinstance(value, (str, bytes)) and value:
        return _MASK
    if isinstance(value, Mapping):
        return {key: masked(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [masked(name, item) for item in value]
    return value


def mask_url(url: str) -> str:
    """The URL (or several, joined by `;`) without its passwords."""
    return ";".join(_mask_one_url(part) for part in url.split(";"))


def _mask_one_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    address, question, query = rest.partition("?")
    login, at, host = address.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        login = f"{user}:**"
    pairs = [
        f"{pair.partition('=')[0]}=**" if any(word in pair.partition("=")[0].lower() for word in _SECRET_WORDS) else pair
        for pair in query.split("&")
    ]
    return f"{scheme}://{login}{at}{host}{question}{'&'.join(pairs)}"


def _shown(value: Any) -> str:
    return repr(dict(value) if isinstance(value, MappingProxyType) else value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
