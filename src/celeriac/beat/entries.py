"""The entries of an app's settings, kept in the engine as they stand there."""

from __future__ import annotations

import logging
from typing import Any

from ..contracts.schedules import Schedules
from ..tasks.entries import PlanningApp, own_entries, own_source, planning

logger = logging.getLogger("celeriac.beat")

PAGE = 500


def take_over(app: PlanningApp, store: Schedules) -> dict[str, Any]:
    """Puts the app's own entries into the engine, and removes those that its settings do not name any more. Returns their schedules by name.

    What has not changed stays where it stood, so that it does not matter how many beats do this, and when.
    """
    own = own_entries(app)
    now = store.now()
    states = {state.name: state for state in _kept(store, own_source(app))}
    plannings = [planning(entry, when, now, states.get(name)) for name, (entry, when) in own.items()]
    for start in range(0, len(plannings), PAGE):
        for name in store.put(plannings[start : start + PAGE]):
            logger.warning("The entry %r of the settings is not used: the engine holds one of that name from elsewhere.", name)
    gone = [name for name in states if name not in own]
    if gone:
        store.remove(gone)
        logger.info("No longer in the settings, and removed: %s", ", ".join(gone))
    return {name: when for name, (_, when) in own.items()}


def _kept(store: Schedules, source: str) -> list[Any]:
    found: list[Any] = []
    page = store.entries(source=source, limit=PAGE)
    while page:
        found += page
        page = store.entries(source=source, after=page[-1].name, limit=PAGE)
    return found
