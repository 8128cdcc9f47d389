"""`call`, `result` and `why`: one task, from sending it to what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.shell_completion import CompletionItem

from ..core import states
from ..core.message import Record
from ..core.serialize import decode_exception, decode_value
from . import exits
from .command import Command, ParamType
from .session import Session

if TYPE_CHECKING:
    from ..app import Celeriac

_LOOK_EVERY_SECONDS = 5.0
"""How often a waiting command looks for itself, should the engine's word of a change get lost."""


class Json(ParamType):
    """A JSON value of one kind."""

    name = "json"

    def __init__(self, kind: type, example: str) -> None:
        self.kind = kind
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, self.kind):
            return value
        try:
            found = msgspec.json.decode(value)
        except msgspec.DecodeError as problem:
            self.fail(f"{value!r} is not JSON ({problem}); it should look like {self.example}", param, ctx)
        if not isinstance(found, self.kind):
            self.fail(f"{value!r} should look like {self.example}", param, ctx)
        return found


class Moment(ParamType):
    """ISO 8601; without a zone it is UTC, as everywhere."""

    name = "time"

    def __init__(self, or_seconds: bool = False) -> None:
        self.or_seconds = or_seconds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | float:
        if isinstance(value, (datetime, float)):
            return value
        if self.or_seconds:
            try:
                return float(value)
            except ValueError:
                pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time like 2026-01-31T12:00:00+00:00{' and no number of seconds' * self.or_seconds}", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _complete_task(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    session = ctx.find_object(Session)
    try:
        names = sorted(session.app_with_tasks.tasks) if session is not None else []
    except Exception:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


# -- call -----------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n  celeriac -A proj call proj.tasks.add -a '[2, 2]'\n"
    "  celeriac -A proj call proj.tasks.mail -k '{\"to\": 7}' --countdown 60 --queue mail\n"
    "  celeriac -A proj call proj.tasks.add -a '[2, 2]' --wait 10",
)
@click.argument("name", shell_complete=_complete_task)
@click.option("-a", "--args", type=Json(list, "[2, 2]"), default="[]", metavar="JSON", help="Positional arguments.")
@click.option("-k", "--kwargs", type=Json(dict, '{"x": 2}'), default="{}", metavar="JSON", help="Keyword arguments.")
@click.option("--eta", type=Moment(), metavar="TIME", help="Not before this time (ISO 8601).")
@click.option("--countdown", type=float, metavar="SECONDS", help="Not before so many seconds from now.")
@click.option("--expires", type=Moment(or_seconds=True), metavar="TIME", help="Not after this time, or so many seconds.")
@click.option("--serializer", help="How to encode the arguments.")
@click.option("--queue", help="Into this queue.")
@click.option("--exchange", help="As in AMQP.")
@click.option("--routing-key", help="As in AMQP.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, 9 first.")
@click.option("--task-id", metavar="ID", help="This id. Sent twice, it runs once.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long for the result, and print that.")
@click.pass_obj
def call(session: Session, /, name: str, args: list[Any], kwargs: dict[str, Any], wait: float | None, **options: Any) -> None:
    """Send the task NAME, and print its id."""
    app = session.app if session.app_name is None else session.app_with_tasks
    if session.app_name is not None and name not in app.tasks:
        from difflib import get_close_matches

        close = get_close_matches(name, list(app.tasks), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        session.remark(f"Task '{name}' is not registered in this app.{hint} It is sent all the same, and waits for a worker that knows it.")
    given = {option: value for option, value in options.items() if value is not None}
    id = app.send_task(name, args=args, kwargs=kwargs, **given).id
    if wait is not None:
        record = _last(_records(app, id, wait))
        _say_result(session, id, record, traceback=False)
    elif session.json:
        session.say_json({"id": id, "task": name})
    else:
        session.say(id)


# -- result ---------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n  celeriac -A proj result ID\n  celeriac -A proj result ID --wait 30\n  celeriac -A proj result ID --watch\n\n"
    "\b\nExit codes: 0 it succeeded; 1 it failed or was revoked; 75 it has not ended yet.",
)
@click.argument("task_id")
@click.option("-t", "--task", help="Accepted for Celery's sake; the id is enough.", hidden=True)
@click.option("--traceback", is_flag=True, help="Show the traceback instead.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait so long until it has ended.")
@click.option("--watch", is_flag=True, help="Show each change until it has ended (within --wait, if given).")
@click.pass_obj
def result(session: Session, task_id: str, task: str | None, traceback: bool, wait: float | None, watch: bool) -> None:
    """Show what the task TASK_ID returned, or the error that ended it."""
    app = session.app
    if not watch:
        _say_result(session, task_id, _last(_records(app, task_id, wait or 0.0)), traceback)
        return
    record = None
    for record in _records(app, task_id, wait):
        if record is not None and record.status not in states.READY_STATES:
            _say_change(session, task_id, record)
    _say_result(session, task_id, record, traceback)


def _records(app: Celeriac, id: str, timeout_seconds: float | None) -> Iterator[Record | None]:
    """The record now, and again at each change, until it has ended or the time is over."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    seen = app.backend.fetch([id]).get(id)
    yield seen
    if (seen is not None and seen.status in states.READY_STATES) or timeout_seconds == 0.0:
        return
    subscription = app.backend.subscribe([id])
    try:
        while True:
            record = app.backend.fetch([id]).get(id)
            if record != seen:
                yield record
                seen = record
            if record is not None and record.status in states.READY_STATES:
                return
            left_seconds = _LOOK_EVERY_SECONDS if deadline is None else deadline - time.monotonic()
            if left_seconds <= 0:
                return
            subscription.changed(min(left_seconds, _LOOK_EVERY_SECONDS))
    finally:
        subscription.close()


def _last(records: Iterator[Record | None]) -> Record | None:
    return list(records)[-1]


def _say_change(session: Session, id: str, record: Record) -> None:
    if session.json:
        session.say_json(_as_row(id, record))
    else:
        value = _value(record)
        session.say(record.status if value is None else f"{record.status}: {value}")


def _say_result(session: Session, id: str, record: Record | None, traceback: bool) -> None:
    """Prints it, and ends the command with the code that says how the task ended."""
    status = record.status if record is not None else states.PENDING
    if session.json:
        session.say_json(_as_row(id, record))
    elif record is None:
        session.remark(f"{status}: no result of {id} is kept. `celeriac why {id}` says more.")
    elif traceback:
        session.say(record.traceback or "There is no traceback.")
    elif status == states.SUCCESS:
        session.say(str(_value(record)))
    elif status in states.READY_STATES:
        session.remark(f"{status}: {_value(record)}")
    else:
        value = _value(record)
        session.remark(f"{status}: {value}" if value is not None else f"{status}: it has not ended yet.")
    if status not in states.READY_STATES:
        raise click.exceptions.Exit(exits.NOT_YET)
    if status != states.SUCCESS and not traceback:
        raise click.exceptions.Exit(exits.FAILED)


def _value(record: Record) -> Any:
    if record.status in states.EXCEPTION_STATES:
        error = decode_exception(record.result)
        return f"{type(error).__name__}: {error}"
    return decode_value(record.result)


def _as_row(id: str, record: Record | None) -> dict[str, Any]:
    if record is None:
        return {"task_id": id, "status": states.PENDING, "result": None}
    row: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return {"result": None, **row, "task_id": id}


# -- why ------------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n  celeriac -A proj why ID\n  celeriac -A proj why ID --json\n\n\b\nExit codes: 0 something is known of it; 1 nothing is.",
)
@click.argument("task_id")
@click.option(
    "-t", "--timeout", type=float, default=1.0, show_default=True, metavar="SECONDS", help="How long the worker that has it may answer."
)
@click.pass_obj
def why(session: Session, task_id: str, timeout: float) -> None:
    """Say exactly why the task TASK_ID is not running, or what became of it."""
    from msgspec import structs

    from ..canvas.flow import Flow
    from ..tasks.why import why as explain

    explanation = explain(session.app, task_id, timeout_seconds=timeout)
    if explanation.state == "unknown" and (flow := Flow.restore(task_id, session.app)) is not None:
        sentences = flow.why()
        explanation = structs.replace(explanation, state="unfinished", reasons=["members-missing"], sentences=sentences)
    if session.json:
        session.say_json(explanation)
    else:
        first, *others = explanation.sentences
        session.say(f"{session.style(explanation.state, fg=_COLORS.get(explanation.state, 'yellow'), bold=True)}: {first}")
        for sentence in others:
            session.say(f"  {sentence}")
    if explanation.state == "unknown":
        raise click.exceptions.Exit(exits.FAILED)


_COLORS = {"succeeded": "green", "running": "green", "failed": "red", "dead": "red", "unknown": "red"}
