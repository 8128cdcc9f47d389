"""Schedules in the project's database: rows of `PeriodicTask`, kept in step with the entries that beat works with.

A row that is saved or deleted is told to the engine when that is committed. Every beat, beside its work, also reads all rows every few seconds: so changes by SQL or `QuerySet.update()` count too, what could not
be told is made good, and the rows learn when they were sent, and how often.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ..contracts.schedules import Entry, EntryState
from ..core import events
from ..core.errors import CeleriacError
from ..core.trouble import Trouble
from ..tasks.entries import make_entry, planning

if TYPE_CHECKING:
    from ..app import Celeriac

logger = logging.getLogger("celeriac.django")

SOURCE = "Django's database"
"""Whose entries they are, in the engine."""
LOOK_SECONDS = 5.0
ROWS_A_SECOND = 200
"""Where there are many rows they are read less often: so many a second are no burden."""
PAGE = 500


class DatabaseScheduler:
    """For `CELERY_BEAT_SCHEDULER = "celeriac.django.schedulers:DatabaseScheduler"`, as tutorials write. There is nothing to choose: every beat sends what the rows say."""


def entry_of(app: Celeriac, row: Any) -> tuple[Entry, Any]:
    """The entry, and its schedule. Raises ValueError, TypeError: the row makes no sense."""
    if row.scheduler is None:
        raise ValueError(f"Entry {row.name!r} has no schedule.")
    options = {
        "queue": row.queue,
        "exchange": row.exchange,
        "routing_key": row.routing_key,
        "priority": row.priority,
        "headers": _json(row.headers, {}) or None,
    }
    return make_entry(
        app,
        row.name,
        row.schedule,
        row.task,
        _json(row.args, []),
        _json(row.kwargs, {}),
        {name: value for name, value in options.items() if value not in (None, "")},
        source=SOURCE,
        enabled=row.enabled,
        description=row.description,
        misfire=row.misfire,
        overlap=row.overlap,
        starts_at=row.start_time,
        ends_at=row.expires,
        # Each time that somebody enables it, it is sent once.
        max_runs=row.total_run_count + 1 if row.one_off else None,
        expires=row.expire_seconds,
    )


def tell(app: Celeriac, rows: Iterable[Any]) -> None:
    """Puts these rows into the engine as they are. Raises EngineUnavailable."""
    store = app.schedule_store
    now = store.now()
    rows = list(rows)
    states = {state.name: state for state in store.entries([row.name for row in rows])}
    plannings, wanted = [], {}
    for row in rows:
        try:
            entry, when = entry_of(app, row)
        except (ValueError, TypeError) as problem:
            logger.error("The periodic task %r is not sent: %s", row.name, problem)
            continue
        plannings.append(planning(entry, when, now, states.get(row.name)))
        wanted[row.name] = row.enabled
    for name in store.put(plannings):
        logger.warning("The periodic task %r is not used: the engine holds an entry of that name from elsewhere.", name)
        wanted.pop(name, None)
    store.resume([name for name, state in states.items() if wanted.get(name) is True and not state.enabled])
    store.pause([name for name, state in states.items() if wanted.get(name) is False and state.enabled])


def tell_removed(app: Celeriac, names: list[str]) -> None:
    """Takes these out of the engine, if they are ours."""
    store = app.schedule_store
    store.remove([state.name for state in store.entries(names) if state.entry is not None and state.entry.source == SOURCE])


def agree(app: Celeriac) -> int:
    """Makes rows and engine agree, both ways; returns how many rows there are."""
    from .models import PeriodicTask

    store = app.schedule_store
    kept: dict[str, EntryState] = {}
    page = store.entries(source=SOURCE, limit=PAGE)
    while page:
        kept.update((state.name, state) for state in page)
        page = store.entries(source=SOURCE, after=page[-1].name, limit=PAGE)
    count = 0
    changed = []
    for row in PeriodicTask.objects.select_related("interval", "crontab", "solar", "clocked").order_by("name").iterator(PAGE):
        count += 1
        state = kept.pop(row.name, None)
        if state is not None and _learn(row, state):
            PeriodicTask.objects.filter(pk=row.pk).update(
                last_run_at=row.last_run_at, total_run_count=row.total_run_count, enabled=row.enabled
            )
        if _differs(app, row, state):
            changed.append(row)
    for start in range(0, len(changed), PAGE):
        tell(app, changed[start : start + PAGE])
    if kept:
        store.remove(list(kept))
    return count


def _learn(row: Any, state: EntryState) -> bool:
    """What the engine knows better: when the row was sent last, and how often. True: something is new."""
    if row.total_run_count == state.total_run_count:
        return False
    if row.one_off and state.total_run_count > row.total_run_count:
        row.enabled = False
    row.total_run_count = state.total_run_count
    row.last_run_at = None if state.last_run_at is None else datetime.fromtimestamp(state.last_run_at, UTC)
    return True


def _differs(app: Celeriac, row: Any, state: EntryState | None) -> bool:
    if state is None or state.entry is None or state.enabled != row.enabled:
        return True
    try:
        entry, _ = entry_of(app, row)
    except (ValueError, TypeError):
        return True
    return msgspec.structs.replace(entry, enabled=state.entry.enabled) != state.entry


class Agreement:
    """A thread of a beat that keeps rows and engine in agreement."""

    def __init__(self, app: Celeriac) -> None:
        self._app = app
        self._trouble = Trouble(logger, "The table of periodic tasks")
        self._thread = threading.Thread(target=self._run, name="celeriac-rows", daemon=True)

    def start(self) -> None:
        """The first time at once, so that the beat begins with what the rows say."""
        self._pause_seconds = self._agree()
        self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._pause_seconds):
            self._pause_seconds = self._agree()

    def _agree(self) -> float:
        from django.db import DatabaseError, InterfaceError, connection

        try:
            count = agree(self._app)
            self._trouble.over()
            return max(LOOK_SECONDS, count / ROWS_A_SECOND)
        except (DatabaseError, InterfaceError, CeleriacError, OSError) as problem:
            self._trouble.seen(problem)
            return LOOK_SECONDS
        finally:
            connection.close()


def install() -> None:
    """From now on rows that are saved are told to the engine, and beats read them."""
    from django.db.models.signals import post_delete, post_save

    from .models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule

    post_save.connect(_saved, sender=PeriodicTask, dispatch_uid="celeriac.django")
    post_delete.connect(_deleted, sender=PeriodicTask, dispatch_uid="celeriac.django")
    for model in (IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule):
        post_save.connect(_schedule_saved, sender=model, dispatch_uid="celeriac.django")
    events.beat_init.connect(_begin_agreement, dispatch_uid="celeriac.django")


def _begin_agreement(**_: Any) -> None:
    from .project import ensure_app

    Agreement(ensure_app()).start()


def _saved(instance: Any, raw: bool = False, **_: Any) -> None:
    if not raw:
        _once_committed(lambda app: tell(app, [instance]))


def _deleted(instance: Any, **_: Any) -> None:
    _once_committed(lambda app: tell_removed(app, [instance.name]))


def _schedule_saved(instance: Any, created: bool = False, raw: bool = False, **_: Any) -> None:
    if not created and not raw:
        _once_committed(lambda app: tell(app, instance.periodictask_set.select_related("interval", "crontab", "solar", "clocked")))


def _once_committed(action: Any) -> None:
    from django.db import transaction

    from .project import ensure_app

    def act() -> None:
        try:
            action(ensure_app())
        except (CeleriacError, OSError) as problem:
            logger.warning("Beats learn of the change by themselves, in some seconds; the engine was not told: %s", problem)

    transaction.on_commit(act)


def _json(text: str, default: Any) -> Any:
    return msgspec.json.decode(text) if text and text.strip() else default
