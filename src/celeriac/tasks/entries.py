"""Entries of the schedule: from what people write to what engines keep, and `app.schedules`, which is for those that are made while the program runs.

An entry stands in the settings (`beat_schedule`, `add_periodic_task`, `@app.periodic`) or is stored by `app.schedules.put`. Both kinds live in the
engine, side by side, and beat sends what is due of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

from msgspec import Struct
from msgspec.structs import replace

from ..contracts.broker import Broker
from ..contracts.schedules import Entry, EntryState, Firing, LedgerLine, Misfire, Overlap, Planning, Schedules
from ..core import events
from ..core.errors import ImproperlyConfigured
from ..core.message import Message
from ..core.schedules import BaseSchedule, crontab, maybe_schedule
from ..core.schedules.data import as_data, from_data
from ..core.schedules.timetable import Timetable
from ..core.serialize import decode_value, encode_value
from .producer import Producer, announced, tell_published
from .result import AsyncResult
from .signature import Signature
from .task import Task

POLICIES = frozenset({"misfire", "misfire_window", "misfire_grace", "overlap", "jitter", "starts_at", "ends_at", "max_runs", "expires", "enabled", "description"})  # fmt: skip
"""What an entry may say beside schedule, task, args, kwargs, options and relative."""
MAY_BE_A_COPY = {"celeriac-again": True}
"""The header by which a broker that knows no ids lets workers look first whether the message is done already. The beat that claimed it may have published
it, been stopped before it said so, and another may publish it again."""
TRIES = 20
"""So often an entry is run by hand before the beats that change it meanwhile are too many."""


class PlanningApp(Protocol):
    """What entries need of an app."""

    main: str | None
    periodic_tasks: dict[str, dict[str, Any]]

    @property
    def broker(self) -> Broker: ...
    @property
    def producer(self) -> Producer: ...
    @property
    def schedule_store(self) -> Schedules: ...
    @property
    def tasks(self) -> Any: ...
    @property
    def conf(self) -> Any: ...
    @property
    def timezone(self) -> Any: ...
    def now(self) -> Any: ...


class Occurrence(Struct, frozen=True, kw_only=True):
    """A line of a preview."""

    planned_at: datetime
    """In the zone of the schedule."""
    remark: str = ""
    """What is unusual about it because clocks are set forward or back."""


# -- from what people write ------------------------------------------------------------------------------------------------


def make_entry(
    app: PlanningApp,
    name: str,
    when: Any,
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    source: str = "",
    relative: bool = False,
    **policies: Any,
) -> tuple[Entry, Any]:
    """The entry, and its schedule.

    Raises ValueError, TypeError: it makes no sense, and which part of it. EncodeError: an argument cannot travel.
    """
    if unknown := sorted(policies.keys() - POLICIES):
        from difflib import get_close_matches

        close = get_close_matches(unknown[0], POLICIES, n=1)
        raise TypeError(f"An entry has no {unknown[0]!r}.{f' Did you mean {close[0]!r}?' if close else ''}")
    if not name or not isinstance(name, str):
        raise ValueError(f"An entry needs a name, not {name!r}.")
    if isinstance(task, Mapping):
        signature = Signature.from_dict(task) if not isinstance(task, Signature) else task.clone()
        args, kwargs = (*signature.args, *args), {**signature.kwargs, **(kwargs or {})}
        options, task = {**signature.options, **(options or {})}, signature.task
    elif isinstance(task, Task):
        task = task.name
    if not isinstance(task, str) or not task:
        raise TypeError(f"Entry {name!r}: task is a task, its name or a signature, not {task!r}.")
    # A schedule of somebody else's stays as it is; ours are told the app, whose zone counts when they have none.
    schedule = maybe_schedule(when, relative, app=app)
    try:
        written = as_data(schedule)
    except (TypeError, ValueError) as problem:
        raise type(problem)(f"Entry {name!r}: {problem}") from None
    window, grace = _seconds(policies, "misfire_window", name), _seconds(policies, "misfire_grace", name)
    deadline = app.conf.beat_cron_starting_deadline if isinstance(schedule, crontab) else None
    if window is None and deadline is not None:
        window, grace = deadline, min(deadline, 10.0) if grace is None else grace
    entry = Entry(
        name=name,
        schedule=written,
        task=task,
        args=encode_value(list(args), f"args of entry {name!r}"),
        kwargs=encode_value(dict(kwargs or {}), f"kwargs of entry {name!r}"),
        options=encode_value(dict(options or {}), f"options of entry {name!r}"),
        enabled=bool(policies.get("enabled", True)),
        source=source,
        description=str(policies.get("description") or ""),
        misfire=_one_of(Misfire, policies, "misfire", Misfire.ONCE, name),
        misfire_window_seconds=window,
        misfire_grace_seconds=10.0 if grace is None else grace,
        overlap=_one_of(Overlap, policies, "overlap", Overlap.ALLOW, name),
        jitter_seconds=_seconds(policies, "jitter", name) or 0.0,
        starts_at=_moment(policies, "starts_at", name, app),
        ends_at=_moment(policies, "ends_at", name, app),
        max_runs=_count(policies, "max_runs", name),
        expires_seconds=_seconds(policies, "expires", name),
    )
    return entry, schedule


def own_entries(app: PlanningApp) -> dict[str, tuple[Entry, Any]]:
    """The entries that the app's settings and code name. Its tasks are imported already."""
    app.tasks  # noqa: B018  # finalizes the app: receivers of on_after_finalize may add entries
    found = {}
    for name, given in {**app.conf.beat_schedule, **app.periodic_tasks}.items():
        if not isinstance(given, Mapping):
            raise ImproperlyConfigured(f"beat_schedule: entry {name!r} must be a dict with schedule and task, not {given!r}.")
        spec = dict(given)
        if not spec.pop("enabled", True):
            continue
        when, task = spec.pop("schedule"), spec.pop("task")
        try:
            found[str(name)] = make_entry(app, str(name), when, task, source=own_source(app), **spec)
        except (TypeError, ValueError) as problem:
            raise ImproperlyConfigured(f"beat_schedule: {problem}") from problem
    return found


def own_source(app: PlanningApp) -> str:
    """Names the app in the entries of its settings."""
    return f"settings of {app.main or 'the app'}"


def timetable(entry: Entry, schedule: Any) -> Timetable:
    return Timetable(schedule, name=entry.name, starts_at=entry.starts_at, ends_at=entry.ends_at, jitter_seconds=entry.jitter_seconds)


def planning(entry: Entry, schedule: Any, now: float, state: EntryState | None = None) -> Planning:
    """The entry with its first occurrence, should it be new, or changed since `state`."""
    table = timetable(entry, schedule)
    planned_at = table.first(now)
    if planned_at is not None and state is not None and state.last_planned_at is not None and planned_at <= state.last_planned_at:
        planned_at = table.after(state.last_planned_at)
    return Planning(entry=entry, planned_at=planned_at, due_at=None if planned_at is None else table.due_at(planned_at))


# -- to messages -----------------------------------------------------------------------------------------------------------


def occurrence_id(name: str, planned_at: float) -> str:
    """The id of the message of this occurrence: always the same one, and later ones sort after earlier ones. A UUID of version 8."""
    from hashlib import blake2b

    noise = blake2b(f"{name}\0{planned_at!r}".encode(), digest_size=10).hexdigest()
    head = f"{max(0, int(planned_at * 1000)) & 0xFFFFFFFFFFFF:012x}"
    return f"{head[:8]}-{head[8:]}-8{noise[:3]}-{'89ab'[int(noise[3], 16) & 3]}{noise[4:7]}-{noise[7:19]}"


def occurrence_message(
    producer: Producer, find_task: Callable[[str], Task[..., Any] | None], entry: Entry, planned_at: float, now: float
) -> Message:
    """The message of an occurrence that is sent at `now`; all times in it are those of the engine's clock, whatever the one here shows."""
    options: dict[str, Any] = dict(decode_value(entry.options))
    task = find_task(entry.task)
    expires = options.pop("expires", None)
    if expires is None and task is not None:
        expires = task.defaults(producer.settings).expires
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if isinstance(expires, int | float):
        expires = datetime.fromtimestamp(now + expires, UTC)
    if entry.expires_seconds is not None:
        at_last = datetime.fromtimestamp(planned_at + entry.expires_seconds, UTC)
        expires = at_last if expires is None else min(expires, at_last)
    options["expires"] = expires
    options["task_id"] = occurrence_id(entry.name, planned_at)
    options["headers"] = {
        **(options.get("headers") or {}),
        "celery_beat_task": True,
        "periodic_task_name": entry.name,
        "planned_at": datetime.fromtimestamp(planned_at, UTC).isoformat(),
    }
    if entry.overlap is not Overlap.ALLOW and not producer.broker.capabilities.ids:
        options["ignore_result"] = False  # where messages cannot be looked for, the record says whether it runs still
    return producer.message(entry.task, tuple(decode_value(entry.args)), decode_value(entry.kwargs), task=task, options=options)


def fire(store: Schedules, producer: Producer, firings: Sequence[Firing]) -> list[str]:
    """`Schedules.fire`, with the signals around it; where the broker is another engine than the store, the messages are published there after the claim."""
    if events.before_task_publish.receivers:
        firings = [replace(firing, messages=announced(firing.messages)) if firing.messages else firing for firing in firings]
    together = producer.broker.capabilities.schedules
    refused = store.fire(firings, publish=together)
    lost = set(refused)
    messages = [message for firing in firings if firing.name not in lost for message in firing.messages]
    if messages and not together:
        publish_kept(store, producer, {message.id for message in messages})
    if messages and events.after_task_publish.receivers:
        tell_published(messages)
    return refused


def publish_kept(store: Schedules, producer: Producer, ids: set[str] | None = None, *, older_than_seconds: float = 0.0) -> None:
    """Publishes what was claimed and is kept: the messages of these ids, or those that somebody else has left behind so long ago."""
    messages = store.kept(1000, older_than_seconds=older_than_seconds)
    if ids is not None:
        messages = [message for message in messages if message.id in ids]
    if not messages:
        return
    ready = messages
    if not producer.broker.capabilities.ids:
        ready = [replace(message, headers={**message.headers, **MAY_BE_A_COPY}) for message in messages]
    producer.broker.publish(ready)
    store.sent([message.id for message in messages])


# -- app.schedules ---------------------------------------------------------------------------------------------------------


class Entries:
    """`app.schedules`: the entries as the engine keeps them. What is changed here takes effect within seconds, whatever beats run."""

    def __init__(self, app: PlanningApp) -> None:
        self._app = app

    @property
    def store(self) -> Schedules:
        return self._app.schedule_store

    def put(
        self,
        name: str,
        schedule: Any,
        task: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        **policies: Any,
    ) -> EntryState:
        """Stores an entry, or changes the one of that name: `put("nightly", crontab(0, 2), clean_up, overlap="skip")`.

        `task` is a task, its name or a signature; `options` is what `apply_async` takes. Of the policies (`misfire`, `misfire_window`,
        `misfire_grace`, `overlap`, `jitter`, `starts_at`, `ends_at`, `max_runs`, `expires`, `enabled`, `description`) docs/schedules.md tells.
        A new schedule begins to count now; when only other things change, the entry stays where it stood.

        Raises: ValueError, TypeError: the entry makes no sense, or stands in somebody's settings.
        """
        entry, when = make_entry(self._app, name, schedule, task, args, kwargs, options, **policies)
        if entry.schedule.startswith('{"code"'):
            raise ValueError(
                f"Entry {name!r}: a stored entry cannot have the schedule {when!r}: the engine cannot keep a class of your own. Name it in beat_schedule."
            )
        self.keep(entry, when)
        return self.get(name)

    def change(self, name: str, **given: Any) -> EntryState:
        """Changes what is given of a stored entry, in the words of `put`: `change("nightly", overlap="skip", args=(2,))`."""
        entry = self.get(name).entry
        if entry is None:
            raise ValueError(f"Entry {name!r} cannot be read, so it cannot be changed in parts. Put it anew.")
        spec = {
            "schedule": given["schedule"] if "schedule" in given else self.schedule_of(entry),
            "task": entry.task,
            "args": decode_value(entry.args),
            "kwargs": decode_value(entry.kwargs),
            "options": decode_value(entry.options),
            "misfire": entry.misfire,
            "misfire_window": entry.misfire_window_seconds,
            "misfire_grace": entry.misfire_grace_seconds,
            "overlap": entry.overlap,
            "jitter": entry.jitter_seconds,
            "starts_at": entry.starts_at,
            "ends_at": entry.ends_at,
            "max_runs": entry.max_runs,
            "expires": entry.expires_seconds,
            "description": entry.description,
        }
        return self.put(name, **{**spec, **given})

    def keep(self, entry: Entry, schedule: Any) -> None:
        """Stores an entry that is made already."""
        known = self.store.entries([entry.name])
        if self.store.put([planning(entry, schedule, self.store.now(), known[0] if known else None)]):
            source = known[0].entry.source if known and known[0].entry else "somebody else"
            raise ValueError(f"Entry {entry.name!r} belongs to the {source}. Change it there, or give this one another name.")

    def remove(self, *names: str) -> list[str]:
        """Removes stored entries; returns the names of those that were there. Those of settings come back with the next start of a beat, so ValueError."""
        for state in self.store.entries(names):
            if state.entry is not None and state.entry.source == own_source(self._app) and state.name in own_entries(self._app):
                raise ValueError(f"Entry {state.name!r} stands in the {state.entry.source}. Remove it there; until then it can be paused.")
        return self.store.remove(names)

    def pause(self, *names: str) -> list[str]:
        """Nothing is sent of these entries until `resume`; returns the names of those that were not paused yet."""
        return self.store.pause(names)

    def resume(self, *names: str) -> list[str]:
        """They go on with the next occurrence; what was planned meanwhile is not sent. Returns the names of those that were paused."""
        return self.store.resume(names)

    def get(self, name: str) -> EntryState:
        """Raises LookupError: there is no entry of that name."""
        found = self.store.entries([name])
        if not found:
            from difflib import get_close_matches

            close = get_close_matches(name, [state.name for state in self.store.entries(limit=1000)], n=1)
            raise LookupError(f"There is no entry {name!r}.{f' Did you mean {close[0]!r}?' if close else ''}")
        return found[0]

    def __iter__(self) -> Iterator[EntryState]:
        """All entries, by name."""
        page = self.store.entries()
        while page:
            yield from page
            page = self.store.entries(after=page[-1].name)

    def run(self, name: str, *, by: str = "by hand") -> AsyncResult[Any]:
        """Sends an entry's task now, beside its schedule, also when it is paused. It has a line in the ledger."""
        for _ in range(TRIES):
            state = self.get(name)
            if state.entry is None:
                raise ValueError(state.error)
            now = self.store.now()
            message = occurrence_message(self._app.producer, self._app.tasks.get, state.entry, now, now)
            line = LedgerLine(entry=name, planned_at=now, due_at=now, outcome="sent", why=by, message_id=message.id)
            firing = Firing(
                name=name,
                version=state.version,
                planned_at=state.planned_at,
                due_at=state.due_at,
                queued_at=state.queued_at,
                lines=[line],
                messages=[message],
            )
            if not fire(self.store, self._app.producer, [firing]):
                return AsyncResult(message.id, app=cast("Any", self._app))
        raise RuntimeError(f"Entry {name!r} was changed each time that it was to be run. Try again.")

    def schedule_of(self, entry: Entry) -> Any:
        """The schedule of an entry. Raises LookupError, ValueError: it cannot be told here, or at all."""
        try:
            return from_data(entry.schedule, self._app)
        except LookupError:
            own = own_entries(self._app).get(entry.name)
            if own is None:
                raise
            return own[1]

    def preview(self, what: Any, n: int = 10) -> list[Occurrence]:
        """The next occurrences of an entry (by its name) or of a schedule; without what misfires, overlaps and jitter will make of them."""
        if isinstance(what, str) and (known := self.store.entries([what])):
            entry = known[0].entry
            if entry is None:
                raise ValueError(known[0].error)
            when, first = self.schedule_of(entry), known[0].planned_at
            table = timetable(entry, when)
            if entry.max_runs is not None:
                n = min(n, max(0, entry.max_runs - known[0].total_run_count))
            if first is None and known[0].due_at == 0:
                first = table.first(self.store.now())
        else:
            when = maybe_schedule(what, app=self._app)
            table = Timetable(when)
            first = table.first(self.store.now())
        found: list[Occurrence] = []
        for planned_at in table.occurrences(first):
            if len(found) >= n:
                break
            found.append(_occurrence(when, planned_at))
        return found

    def history(self, name: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        """The ledger's lines of an entry, or of all, the latest first."""
        return self.store.history(name, limit=limit, before=before)


def _occurrence(when: Any, planned_at: float) -> Occurrence:
    moment = datetime.fromtimestamp(planned_at, UTC)
    if not isinstance(when, BaseSchedule):
        return Occurrence(planned_at=moment)
    return Occurrence(planned_at=moment.astimezone(when.tz), remark=when.remark(moment))


# -- policies as people write them -----------------------------------------------------------------------------------------


def _seconds(policies: Mapping[str, Any], key: str, name: str) -> float | None:
    value = policies.get(key)
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None or (type(value) in (int, float) and value >= 0):
        return None if value is None else float(value)
    raise ValueError(f"Entry {name!r}: {key} must be seconds (a number or a timedelta), not {value!r}.")


def _count(policies: Mapping[str, Any], key: str, name: str) -> int | None:
    value = policies.get(key)
    if value is None or (type(value) is int and value > 0):
        return value
    raise ValueError(f"Entry {name!r}: {key} must be a whole number above 0, not {value!r}.")


def _one_of(kind: Any, policies: Mapping[str, Any], key: str, default: Any, name: str) -> Any:
    value = policies.get(key)
    try:
        return default if value is None else kind(str(value))
    except ValueError:
        raise ValueError(f"Entry {name!r}: {key} is one of {', '.join(map(repr, map(str, kind)))}, not {value!r}.") from None


def _moment(policies: Mapping[str, Any], key: str, name: str, app: PlanningApp) -> float | None:
    value = policies.get(key)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"Entry {name!r}: {key}={value!r} is not a date and time such as 2026-05-18T09:00.") from None
    if value is None or type(value) in (int, float):
        return None if value is None else float(cast("float", value))
    if not isinstance(value, datetime):
        raise ValueError(f"Entry {name!r}: {key} must be a datetime, not {value!r}.")
    return (value if value.tzinfo is not None else value.replace(tzinfo=app.timezone)).timestamp()
