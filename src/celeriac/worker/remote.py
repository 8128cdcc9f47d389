"""Remote control, the worker's side: a letter comes in, an answer goes out, under Celery's names and in the shapes of Celery's replies.

A command is a function of the supervisor and the letter's arguments; its name is the letter's method.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import structs

from ..contracts.mailbox import Letter
from ..core import events
from ..core.errors import EngineUnavailable, ImproperlyConfigured
from ..core.message import Delivery
from ..core.serialize import decode_body
from .limits import free_hostages
from .rates import parse_rate

if TYPE_CHECKING:
    from .process import Process
    from .slots import Running
    from .supervisor import Supervisor

logger = logging.getLogger("celeriac.worker")

Command = Callable[..., Any]
_SCHEDULED_LIMIT = 1000


def answer(supervisor: Supervisor, letter: Letter) -> None:
    """Does what the letter says, and answers if it asks for that. Never raises for what a letter says."""
    command = COMMANDS.get(letter.method)
    try:
        if command is None:
            logger.error("No such control command: %r", letter.method)
            reply: Any = {"error": f"KeyError({letter.method!r})"}
        else:
            reply = command(supervisor, **letter.arguments)
    except Exception as error:
        logger.exception("Control command %r failed", letter.method)
        reply = {"error": repr(error)}
    if letter.reply_to is not None and letter.method != "shutdown":
        arguments = {"node": supervisor.plan.hostname, "reply": reply}
        try:
            supervisor.broker.post([letter.reply_to], Letter(method="reply", arguments=arguments, ticket=letter.ticket))
        except EngineUnavailable as error:
            logger.warning("The answer to control command %r could not be sent: %s", letter.method, error)


# -- questions -----------------------------------------------------------------------------------------------------


def ping(supervisor: Supervisor) -> dict[str, str]:
    return {"ok": "pong"}


def clock(supervisor: Supervisor) -> dict[str, float]:
    return {"clock": supervisor.broker.now()}


def active(supervisor: Supervisor, safe: bool = False) -> list[dict[str, Any]]:
    """What runs."""
    return [_info(supervisor, process, delivery, task) for process, delivery, task in _held(supervisor) if task is not None]


def reserved(supervisor: Supervisor, safe: bool = False) -> list[dict[str, Any]]:
    """What this worker has taken and not begun."""
    return [_info(supervisor, process, delivery, None) for process, delivery, task in _held(supervisor) if task is None]


def scheduled(supervisor: Supervisor, safe: bool = False) -> list[dict[str, Any]]:
    """What waits for its time in the queues of this worker. It waits in the engine; any worker of these queues will take it."""
    found = []
    for queue in supervisor.plan.queues:
        for waiting in supervisor.broker.peek(queue, state="scheduled", limit=_SCHEDULED_LIMIT):
            message = waiting.message
            if message is None:
                continue
            eta = datetime.fromtimestamp(waiting.due_at or 0.0, UTC).isoformat()
            request = {"id": waiting.id, "name": message.task, "type": message.task, "args": message.argsrepr, "kwargs": message.kwargsrepr}
            found.append({"eta": eta, "priority": message.priority, "request": {**request, "hostname": supervisor.plan.hostname}})
    return found


def revoked(supervisor: Supervisor) -> list[str]:
    return supervisor.broker.revoked()


def registered(supervisor: Supervisor, taskinfoitems: Sequence[str] | None = None, builtins: bool = False) -> list[str]:
    """Names of tasks, with those of the asked attributes that are set."""
    items = taskinfoitems or ("exchange", "routing_key", "rate_limit")
    names = []
    for name, task in sorted(supervisor.app.tasks.items()):
        if name.startswith("celery.") and not builtins:
            continue
        details = [f"{item}={value}" for item in items if (value := getattr(task, item, None)) is not None]
        names.append(f"{name} [{' '.join(details)}]" if details else name)
    return names


def stats(supervisor: Supervisor) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    plan = supervisor.plan
    done = supervisor.finished_tasks + sum(process.page.done() for process in supervisor.processes.values())
    found: dict[str, Any] = {
        "total": {"all tasks": done},
        "pid": os.getpid(),
        "clock": "0",
        "uptime": int(time.time() - supervisor.started_at),
        "pool": {
            "implementation": f"celeriac.worker:{plan.pool}",
            "max-concurrency": supervisor.target * plan.places,
            "processes": [process.pid for process in supervisor.processes.values()],
            "max-tasks-per-child": plan.max_tasks or "N/A",
            "timeouts": [plan.soft_time_limit or 0, plan.time_limit or 0],
        },
        "broker": {"transport": supervisor.broker.capabilities.engine, "hostname": supervisor.broker.url},
        "prefetch_count": 0,
        "rusage": {name: getattr(usage, f"ru_{name}") for name in _RUSAGE},
    }
    if supervisor.options.autoscale:
        most, fewest = supervisor.options.autoscale
        found["autoscaler"] = {"max": most, "min": fewest, "current": supervisor.target}
    return found


_RUSAGE = "utime stime maxrss ixrss idrss isrss minflt majflt nswap inblock oublock msgsnd msgrcv nsignals nvcsw nivcsw".split()


def active_queues(supervisor: Supervisor) -> list[dict[str, Any]]:
    return [
        {
            "name": queue,
            "exchange": {"name": queue, "type": "direct", "durable": True},
            "routing_key": queue,
            "durable": True,
            "exclusive": False,
            "auto_delete": False,
            "no_ack": False,
            "bindings": [],
        }
        for queue in supervisor.plan.queues
    ]


def conf(supervisor: Supervisor, with_defaults: bool = False) -> dict[str, Any]:
    table: dict[str, Any] = supervisor.app.conf.table(with_defaults=with_defaults)
    return {name: value if isinstance(value, (str, int, float, bool, type(None))) else repr(value) for name, value in table.items()}


def report(supervisor: Supervisor) -> dict[str, str]:
    return {"ok": f"{supervisor.plan.hostname}\n{supervisor.app.conf.humanize()}"}


def query_task(supervisor: Supervisor, ids: str | Sequence[str]) -> dict[str, list[Any]]:
    wanted = {ids} if isinstance(ids, str) else set(ids)
    return {
        delivery.id: ["active" if task else "reserved", _info(supervisor, process, delivery, task)]
        for process, delivery, task in _held(supervisor)
        if delivery.id in wanted
    }


def memsample(supervisor: Supervisor) -> str:
    kib = sum(process.rss_bytes() for process in supervisor.processes.values()) // 1024
    return f"{kib} KiB"


# -- commands ------------------------------------------------------------------------------------------------------


def terminate(supervisor: Supervisor, task_id: str | Sequence[str], signal: str | int = "SIGTERM", **_: Any) -> dict[str, str]:
    """Ends running tasks. The engine sends this to the node that runs a revoked task."""
    wanted = {task_id} if isinstance(task_id, str) else set(task_id)
    ended = []
    for process in supervisor.processes.values():
        for task in process.page.running():
            if task.task_id in wanted:
                _terminate(supervisor, process, task, signal)
                ended.append(task.task_id)
    if supervisor.plan.pool in ("prefork", "solo") and wanted.difference(ended):
        # what is taken and not begun is given back: that ends it, since the engine knows that it is revoked
        for number in {process.number for process, delivery, _ in _held(supervisor) if delivery.id in wanted.difference(ended)}:
            free_hostages(supervisor.processes[number], supervisor.settler)
    return {"ok": f"terminate: {', '.join(ended)}" if ended else "terminate: tasks unknown"}


def _terminate(supervisor: Supervisor, process: Process, task: Running, signal_name: str | int) -> None:
    number = signal_name if isinstance(signal_name, int) else getattr(signal, f"SIG{signal_name.removeprefix('SIG')}", signal.SIGKILL)
    if supervisor.plan.places > 1 or supervisor.plan.pool not in ("prefork", "solo"):
        logger.warning("Cancelling task %s", task.task_id)
        process.tell({"cancel": task.task_id})
        return
    logger.warning("Terminating task %s (%s)", task.task_id, signal_name)
    # a process leaves the signals that stop a worker to its supervisor, and others need not end it; so most become the one that does
    process.end_task(task.task_id, "TaskRevokedError", "terminated", signum=number if number in _DEADLY else signal.SIGKILL)


_DEADLY = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})
"""Signals that end a process with more ado than SIGKILL: a core dump, the tracebacks of faulthandler."""


def rate_limit(supervisor: Supervisor, task_name: str, rate_limit: str | float | None) -> dict[str, str]:
    if task_name not in supervisor.app.tasks:
        return {"error": "unknown task"}
    try:
        rate = parse_rate(rate_limit)
    except ImproperlyConfigured as error:
        return {"error": f"Invalid rate limit string: {error}"}
    text = str(rate_limit) if rate else None
    supervisor.app.tasks[task_name].rate_limit = text
    supervisor.plan = structs.replace(supervisor.plan, rate_limits={**supervisor.plan.rate_limits, task_name: text})
    supervisor.replace_processes()
    return {"ok": "new rate limit set successfully" if rate else "rate limit disabled successfully"}


def time_limit(supervisor: Supervisor, task_name: str, soft: float | None = None, hard: float | None = None) -> dict[str, str]:
    if task_name not in supervisor.app.tasks:
        return {"error": "unknown task"}
    for seconds in (soft, hard):
        if seconds is not None and (type(seconds) not in (int, float) or not seconds > 0):
            return {"error": f"a time limit is a number of seconds, not {seconds!r}"}
    if soft and hard and soft > hard:
        return {"error": f"the soft time limit ({soft:g} s) must not be longer than the hard one ({hard:g} s)"}
    limits = {**supervisor.plan.task_limits, task_name: (hard, soft)}
    supervisor.plan = structs.replace(supervisor.plan, task_limits=limits)
    supervisor.replace_processes()
    return {"ok": "time limits set successfully"}


def pool_grow(supervisor: Supervisor, n: int = 1) -> dict[str, str]:
    if supervisor.options.autoscale:
        return {"error": "this worker scales by itself (--autoscale); use the command autoscale"}
    supervisor.resize(supervisor.target + n)
    return {"ok": "pool will grow"}


def pool_shrink(supervisor: Supervisor, n: int = 1) -> dict[str, str]:
    if supervisor.options.autoscale:
        return {"error": "this worker scales by itself (--autoscale); use the command autoscale"}
    supervisor.resize(supervisor.target - n)
    return {"ok": "pool will shrink"}


def pool_restart(supervisor: Supervisor, modules: Sequence[str] = (), reload: bool = False, **_: Any) -> dict[str, str]:
    supervisor.replace_processes()
    return {"ok": "reload started"}


def autoscale(supervisor: Supervisor, max: int | None = None, min: int | None = None) -> dict[str, str]:
    if not supervisor.options.autoscale:
        return {"error": "ValueError('Autoscale not enabled')"}
    most, fewest = supervisor.options.autoscale
    most, fewest = (most if max is None else max, fewest if min is None else min)
    if type(most) is not int or type(fewest) is not int or not 0 < fewest <= most:
        return {"error": f"max={most!r} and min={fewest!r} are not two numbers of processes, the first at least as large as the second"}
    supervisor.options = structs.replace(supervisor.options, autoscale=(most, fewest))
    if not fewest <= supervisor.target <= most:
        supervisor.resize(most if supervisor.target > most else fewest)
    return {"ok": f"autoscale now max={most} min={fewest}"}


def add_consumer(supervisor: Supervisor, queue: str, **_: Any) -> dict[str, str]:
    if queue in supervisor.plan.queues:
        return {"ok": f"already consuming from {queue!r}"}
    _consume(supervisor, [*supervisor.plan.queues, queue])
    return {"ok": f"add consumer {queue}"}


def cancel_consumer(supervisor: Supervisor, queue: str, **_: Any) -> dict[str, str]:
    _consume(supervisor, [name for name in supervisor.plan.queues if name != queue])
    return {"ok": f"no longer consuming from {queue}"}


def _consume(supervisor: Supervisor, queues: list[str]) -> None:
    supervisor.plan = structs.replace(supervisor.plan, queues=queues)
    supervisor.lease.node = structs.replace(supervisor.lease.node, queues=queues)
    supervisor.broker.register(supervisor.lease.node, lease_seconds=supervisor.lease.lease_seconds)
    supervisor.replace_processes()


def enable_events(supervisor: Supervisor) -> dict[str, str]:
    return {"ok": "there are no task events here: states and results are read from the engine"}


def heartbeat(supervisor: Supervisor) -> None:
    events.heartbeat_sent.send(sender=supervisor)


def shutdown(supervisor: Supervisor, **_: Any) -> None:
    logger.warning("Stopping, as a remote command asks.")
    supervisor.stop()


# -- helpers -------------------------------------------------------------------------------------------------------


def _held(supervisor: Supervisor) -> list[tuple[Process, Delivery, Running | None]]:
    """All this node holds, each with its process and, when it runs, since when."""
    running = {(process.number, task.task_id): task for process in supervisor.processes.values() for task in process.page.running()}
    found = []
    for delivery in supervisor.broker.held(supervisor.plan.node):
        number = delivery.lease.holder.process
        process = supervisor.processes.get(number)
        if process is not None:
            found.append((process, delivery, running.get((number, delivery.id))))
    return found


def _info(supervisor: Supervisor, process: Process, delivery: Delivery, task: Running | None) -> dict[str, Any]:
    message = delivery.message
    try:
        args, kwargs, _ = decode_body(message, frozenset(supervisor.app.conf.accept_content)) if message else ((), {}, {})
        shown: tuple[Any, Any] = (list(args), kwargs)
        import msgspec

        msgspec.json.encode(shown)
    except (ValueError, TypeError):
        shown = (message.argsrepr, message.kwargsrepr) if message else ((), {})
    return {
        "id": delivery.id,
        "name": message.task if message else "",
        "type": message.task if message else "",
        "args": shown[0],
        "kwargs": shown[1],
        "hostname": supervisor.plan.hostname,
        "time_start": time.time() - (time.monotonic() - task.started_at) if task else None,
        "acknowledged": False,
        "delivery_info": {
            "exchange": "",
            "routing_key": delivery.queue,
            "priority": message.priority if message else 0,
            "redelivered": delivery.lease.token > 1,
        },
        "worker_pid": process.pid if task else None,
    }


COMMANDS: dict[str, Command] = {
    "ping": ping,
    "clock": clock,
    "active": active,
    "dump_active": active,
    "reserved": reserved,
    "dump_reserved": reserved,
    "scheduled": scheduled,
    "dump_schedule": scheduled,
    "revoked": revoked,
    "dump_revoked": revoked,
    "registered": registered,
    "registered_tasks": registered,
    "dump_tasks": registered,
    "stats": stats,
    "active_queues": active_queues,
    "conf": conf,
    "dump_conf": conf,
    "report": report,
    "query_task": query_task,
    "memsample": memsample,
    "terminate": terminate,
    "rate_limit": rate_limit,
    "time_limit": time_limit,
    "pool_grow": pool_grow,
    "pool_shrink": pool_shrink,
    "pool_restart": pool_restart,
    "autoscale": autoscale,
    "add_consumer": add_consumer,
    "cancel_consumer": cancel_consumer,
    "enable_events": enable_events,
    "disable_events": enable_events,
    "heartbeat": heartbeat,
    "shutdown": shutdown,
}
