"""`celeriac schedule`: what is planned, what became of it, and changes to stored entries while everything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..contracts.schedules import Entry, EntryState, LedgerLine, Misfire, Overlap
from ..core.schedules import clocked, crontab, solar
from ..core.serialize import decode_value
from ..tasks.why import duration_in_words
from . import exits
from .command import Group
from .queues import person
from .session import Session, plural

if TYPE_CHECKING:
    from ..app import Celeriac

EXAMPLES = """
\b
Examples:
  celeriac -A proj schedule list
  celeriac -A proj schedule add nightly proj.tasks.clean_up --cron '30 2 * * *' --tz Europe/Berlin
  celeriac -A proj schedule edit nightly --overlap skip
  celeriac -A proj schedule preview nightly -n 5
  celeriac -A proj schedule history nightly
  celeriac -A proj schedule preview '*/15 9-17 * * mon-fri' --tz Asia/Kathmandu
"""


class plain_mistakes:
    """What the API says of a mistake is the command's answer."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, traceback: Any) -> None:
        if isinstance(problem, (ValueError, TypeError, LookupError)):
            text = str(problem.args[0]) if isinstance(problem, LookupError) and problem.args else str(problem)
            raise exits.CommandFailed(text, exits.FAILED) from problem


@click.group(cls=Group, epilog=EXAMPLES)
def schedule() -> None:
    """What beat sends: entries of the settings and stored ones. Changes take effect within seconds; no beat is restarted."""


# -- list and show ------------------------------------------------------------------------------------------------------------


@schedule.command(name="list")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="So many at most, by name.")
@click.pass_obj
def list_command(session: Session, limit: int) -> None:
    """Show all entries: when they come next, and how it has been."""
    app = _app(session)
    states = app.schedules.store.entries(limit=limit)
    if session.json:
        session.say_json([_as_row(app, state) for state in states])
        return
    if not states:
        session.say("Nothing is scheduled. Entries of the settings appear here when a beat has started.")
        return
    rows = [
        (state.name, _words(app, state), state.entry.task if state.entry else "?", _next(app, state), _when(app, state.last_run_at), state.total_run_count, _standing(state))
        for state in states
    ]  # fmt: skip
    session.table(("entry", "comes", "task", "next", "last sent", "runs", ""), rows)
    if len(states) == limit:
        session.remark(f"There may be more than {limit}: see --limit.")


@schedule.command()
@click.argument("name")
@click.pass_obj
def show(session: Session, name: str) -> None:
    """Show one entry with everything that it says, and its next occurrences."""
    app = _app(session)
    with plain_mistakes():
        state = app.schedules.get(name)
    if session.json:
        session.say_json(_as_row(app, state))
        return
    row = _as_row(app, state)
    for key in ("planned_at", "due_at", "last_planned_at", "last_run_at", "queued_at", "starts_at", "ends_at"):
        if row.get(key) is not None:
            row[key] = _when(app, datetime.fromisoformat(row[key]).timestamp())
    for key, value in row.items():
        if value is not None and value != "":
            session.say(
                f"{session.style(f'{key:<17}', bold=True)} {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
            )
    if state.entry is not None and state.enabled and state.due_at is not None:
        with plain_mistakes():
            _say_occurrences(session, app.schedules.preview(name, 3))


# -- change -------------------------------------------------------------------------------------------------------------------


def _definition(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what an entry is."""
    for option in reversed((
        click.option("--cron", metavar="'M H D M W'", help="As cron writes it: `30 2 * * *`, `@daily`."),
        click.option("--every", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Every so many seconds."),
        click.option("--at", metavar="TIME", help="Once: `2026-05-18T09:00`."),
        click.option("--solar", "sun", nargs=3, metavar="EVENT LAT LON", help="At an event of the sun: `sunset 52.5 13.4`."),
        click.option("--tz", metavar="ZONE", help="The zone whose clocks count: `Asia/Kathmandu`. Default: the app's."),
        click.option("-a", "--args", metavar="JSON", help="The task's arguments: `[1, 2]`."),
        click.option("-k", "--kwargs", metavar="JSON", help="Its keyword arguments: `{\"x\": 1}`."),
        click.option("--options", metavar="JSON", help="What apply_async takes: `{\"queue\": \"high\"}`."),
        click.option("--misfire", type=click.Choice([str(one) for one in Misfire]), help="What becomes of occurrences that no beat was there for."),
        click.option("--misfire-window", type=click.FloatRange(0), metavar="SECONDS", help="None that is older than this is sent."),
        click.option("--misfire-grace", type=click.FloatRange(0), metavar="SECONDS", help="Late by no more than this is in time. Default: 10."),
        click.option("--overlap", type=click.Choice([str(one) for one in Overlap]), help="What to do while the one before still runs."),
        click.option("--jitter", type=click.FloatRange(0), metavar="SECONDS", help="Up to so much later, at random."),
        click.option("--starts-at", metavar="TIME", help="Not before."),
        click.option("--ends-at", metavar="TIME", help="Not after."),
        click.option("--max-runs", type=click.IntRange(1), metavar="N", help="After so many it is finished."),
        click.option("--expires", type=click.FloatRange(0), metavar="SECONDS", help="Not started so long after its time, it is not run."),
        click.option("--description", metavar="TEXT", help="For people."),
    )):  # fmt: skip
        command = option(command)
    return command


@schedule.command()
@click.argument("name")
@click.argument("task")
@_definition
@click.option("--paused", is_flag=True, help="Store it, and send nothing until `resume`.")
@click.pass_obj
def add(session: Session, /, name: str, task: str, paused: bool, **given: Any) -> None:
    """Store an entry: TASK is sent by this NAME, when --cron, --every, --at or --solar says."""
    app = _app(session)
    with plain_mistakes():
        changes = _changes(app, given)
        if "schedule" not in changes:
            raise click.UsageError("Say when: --cron, --every, --at or --solar.")
        if app.schedules.store.entries([name]):
            raise exits.CommandFailed(
                f"There is an entry {name!r} already. Change it with `schedule edit`, or remove it first.", exits.FAILED
            )
        state = app.schedules.put(name, changes.pop("schedule"), task, enabled=not paused, **changes)
    _remark_on_task(session, app, task)
    _say_state(session, app, state, "added")


@schedule.command()
@click.argument("name")
@click.option("--task", help="Another task.")
@_definition
@click.pass_obj
def edit(session: Session, /, name: str, task: str | None, **given: Any) -> None:
    """Change what is given of a stored entry. Only a new schedule begins to count anew."""
    app = _app(session)
    with plain_mistakes():
        if task is None and (given["tz"] is not None) and not any(given[key] for key in ("cron", "every", "at", "sun")):
            raise click.UsageError("--tz goes with --cron, --at or --solar.")
        changes = _changes(app, given)
        if task is not None:
            changes["task"] = task
            _remark_on_task(session, app, task)
        state = app.schedules.change(name, **changes)
    _say_state(session, app, state, "changed")


@schedule.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove(session: Session, names: Sequence[str]) -> None:
    """Remove stored entries. Their history stays."""
    _each(session, names, _app(session).schedules.remove, "removed", "There is no entry")


@schedule.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def pause(session: Session, names: Sequence[str]) -> None:
    """Send nothing of these entries, until `resume`. Lasts over restarts."""
    _each(session, names, _app(session).schedules.pause, "paused", "Paused already, or not there:")


@schedule.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def resume(session: Session, names: Sequence[str]) -> None:
    """Go on with the next occurrence. What was planned meanwhile is not sent."""
    _each(session, names, _app(session).schedules.resume, "resumed", "Not paused, or not there:")


@schedule.command()
@click.argument("name")
@click.pass_obj
def run(session: Session, name: str) -> None:
    """Send an entry's task now, beside its schedule. The id of the task is printed."""
    app = session.app_with_tasks if session.app_name is not None else session.app
    with plain_mistakes():
        result = app.schedules.run(name, by=f"by hand, {person()}")
    session.say_json({"id": result.id, "entry": name}) if session.json else session.say(result.id)


# -- look ahead and back ------------------------------------------------------------------------------------------------------


@schedule.command()
@click.argument("what", metavar="NAME|SCHEDULE")
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="So many.")
@click.option("--tz", metavar="ZONE", help="For a SCHEDULE: the zone whose clocks count.")
@click.pass_obj
def preview(session: Session, what: str, count: int, tz: str | None) -> None:
    """Show the next occurrences of an entry, or of a schedule such as '0 9 * * mon-fri' or 90 (seconds)."""
    app = _app(session)
    with plain_mistakes():
        if app.schedules.store.entries([what]):
            found = app.schedules.preview(what, count)
        else:
            found = app.schedules.preview(_schedule_in(what, app, tz), count)
    if session.json:
        session.say_json([{"planned_at": line.planned_at.isoformat(), "remark": line.remark} for line in found])
        return
    _say_occurrences(session, found)
    if not found:
        session.say("It does not come any more.")


@schedule.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="So many lines, the latest first.")
@click.pass_obj
def history(session: Session, name: str | None, limit: int) -> None:
    """Show what became of each occurrence: sent when, how late, and how its task ended, or why it was not sent."""
    app = _app(session)
    lines = app.schedules.history(name, limit=limit)
    records = app.backend.fetch([line.message_id for line in lines if line.message_id])
    if session.json:
        session.say_json([_line_as_row(line, records) for line in lines])
        return
    if not lines:
        session.say("The ledger has no lines" + (f" of an entry {name!r}." if name else "."))
        return
    rows = [
        (
            *(() if name else (line.entry,)),
            _when(app, line.planned_at) + (f" to {_when(app, line.until)}" if line.until is not None else ""),
            line.outcome + (f" × {line.occurrences}" if line.occurrences > 1 else ""),
            duration_in_words(line.late_seconds) if line.message_id else "",
            records[line.message_id].status if line.message_id in records else "",
            line.message_id or "",
            line.why,
            line.suppressed or "",
        )
        for line in lines
    ]
    session.table((*(() if name else ("entry",)), "planned", "outcome", "late", "task", "id", "why", "suppressed"), rows)


# -- how things are said ------------------------------------------------------------------------------------------------------


def _app(session: Session) -> Celeriac:
    return session.app


def _changes(app: Celeriac, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, in the words of `app.schedules.put`."""
    changes = {key: value for key, value in given.items() if value is not None and key not in ("cron", "every", "at", "sun", "tz")}
    for key, kind in (("args", list), ("kwargs", dict), ("options", dict)):
        if key in changes:
            changes[key] = _json(key, changes[key], kind)
    when = [key for key in ("cron", "every", "at", "sun") if given[key]]
    if len(when) > 1:
        raise click.UsageError("--cron, --every, --at and --solar exclude one another.")
    tz = given["tz"]
    if given["cron"]:
        changes["schedule"] = crontab.from_string(given["cron"], tz=tz)
    elif given["every"]:
        changes["schedule"] = given["every"]
    elif given["at"]:
        changes["schedule"] = clocked(datetime.fromisoformat(given["at"]), tz=tz)
    elif given["sun"]:
        event, lat, lon = given["sun"]
        changes["schedule"] = solar(event, float(lat), float(lon), tz=tz)
    return changes


def _schedule_in(text: str, app: Celeriac, tz: str | None) -> Any:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return crontab.from_string(text, app=app, tz=tz)
    except ValueError as problem:
        raise ValueError(f"There is no entry {text!r}, and as a schedule it cannot be read: {problem}") from None


def _json(name: str, text: str, kind: type) -> Any:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as problem:
        raise click.UsageError(f"--{name} {text!r} is not JSON: {problem}") from None
    if not isinstance(value, kind):
        raise click.UsageError(f"--{name} must be a JSON {'array' if kind is list else 'object'}, not {text}")
    return value


def _each(session: Session, names: Sequence[str], verb: Callable[..., list[str]], done_word: str, otherwise: str) -> None:
    with plain_mistakes():
        done = verb(*names)
    missed = [name for name in names if name not in done]
    if session.json:
        session.say_json({done_word: done, "unchanged": missed})
    else:
        if missed:
            session.remark(f"{otherwise} {', '.join(missed)}.")
        session.say(f"{done_word.capitalize()} {plural(len(done), 'entry', 'entries')}.")
    if not done:
        raise click.exceptions.Exit(exits.FAILED)


def _remark_on_task(session: Session, app: Celeriac, task: str) -> None:
    if session.app_name is not None and task not in session.app_with_tasks.tasks:
        session.remark(f"The app has no task {task!r} (yet). It is sent all the same, and waits for a worker that knows it.")


def _say_state(session: Session, app: Celeriac, state: EntryState, what: str) -> None:
    if session.json:
        session.say_json(_as_row(app, state))
        return
    standing = _standing(state)
    coming = f"next {_next(app, state)}" if state.enabled and state.planned_at is not None else standing
    session.say(f"Entry '{state.name}' {what}: {_words(app, state)}; {coming}.")


def _say_occurrences(session: Session, found: Sequence[Any]) -> None:
    for line in found:
        session.say(f"{line.planned_at:%a %Y-%m-%d %H:%M:%S %Z}  {session.style(line.remark, fg='yellow')}".rstrip())


def _words(app: Celeriac, state: EntryState) -> str:
    if state.entry is None:
        return "?"
    try:
        return str(app.schedules.schedule_of(state.entry).describe())
    except Exception:  # a class of somebody's own, of another app; or text that nobody can read
        return state.entry.schedule


def _next(app: Celeriac, state: EntryState) -> str:
    if not state.enabled or state.due_at is None:
        return ""
    return _when(app, state.planned_at) or "to be planned"


def _when(app: Celeriac, at: float | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at, app.timezone):%Y-%m-%d %H:%M:%S %Z}"


def _standing(state: EntryState) -> str:
    if state.entry is None:
        return state.error
    if not state.enabled:
        return "paused"
    if state.due_at is None:
        return "finished"
    return "one waits for the one before" if state.queued_at is not None else ""


def _as_row(app: Celeriac, state: EntryState) -> dict[str, Any]:
    row: dict[str, Any] = {"name": state.name, "comes": _words(app, state), "state": _standing(state) or "planned"}
    for key in ("planned_at", "due_at", "last_planned_at", "last_run_at", "queued_at"):
        value = getattr(state, key)
        row[key] = None if value in (None, 0.0) else _iso(value)
    row |= {"last_message_id": state.last_message_id, "total_run_count": state.total_run_count}
    return row | _entry_as_row(state.entry) if state.entry is not None else row | {"error": state.error}


def _entry_as_row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(entry))
    row.pop("enabled", None)
    row.pop("name", None)
    for key in ("args", "kwargs", "options"):
        row[key] = msgspec.to_builtins(decode_value(getattr(entry, key)), enc_hook=repr, str_keys=True)
    for key in ("starts_at", "ends_at"):
        if row.get(key) is not None:
            row[key] = _iso(row[key])
    return {**row, "source": entry.source or "stored", "misfire": str(entry.misfire), "overlap": str(entry.overlap)}


def _line_as_row(line: LedgerLine, records: dict[str, Any]) -> dict[str, Any]:
    record = records.get(line.message_id or "")
    return {
        "entry": line.entry,
        "planned_at": _iso(line.planned_at),
        "outcome": line.outcome,
        "fired_at": _iso(line.fired_at),
        "late_seconds": round(line.late_seconds, 3) if line.message_id else None,
        "id": line.message_id,
        "status": record.status if record is not None else None,
        "why": line.why,
        "occurrences": line.occurrences,
        "until": None if line.until is None else _iso(line.until),
        "suppressed": line.suppressed,
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
