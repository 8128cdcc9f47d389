"""`.delay()` inside `atomic()`: the message is stored in the transaction, and published after the commit.

So the two never part: a rollback takes the message with it, a savepoint's too, and after a commit it is published even if this process dies at once or the broker is down for an hour. The process
that committed publishes; what it leaves behind, a relay in each worker process finds some seconds later.

The transaction is one of the default database. Engines know ids: a parcel that is published twice, by a process that died before it could delete the row, puts no message twice into a queue, and what has a result by then is not published again.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..core import events
from ..core.errors import CeleriacError, EnqueueError, ImproperlyConfigured
from ..core.message import Join, Message
from ..core.trouble import Trouble

if TYPE_CHECKING:
    from ..app import Celeriac

logger = logging.getLogger("celeriac.django")

LEFT_BEHIND_SECONDS = 5.0
"""A parcel so old was left behind: whoever committed it would have published it long ago."""
RELAY_SECONDS = 5.0
"""How often a worker process looks for such parcels."""
BATCH = 100


class Parcel(Struct, frozen=True):
    messages: list[Message]
    joins: list[Join] = []


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Parcel).decode


class Outbox:
    """`app.outbox`."""

    def __init__(self, app: Celeriac) -> None:
        self.app = app

    def __call__(self, messages: Sequence[Message], joins: Sequence[Join]) -> bool:
        """Takes them, if there is a transaction. Raises ImproperlyConfigured when the database has no table for it."""
        from django.db import DatabaseError, connection, transaction

        if not connection.in_atomic_block or not self.app.settings.task_outbox:
            return False
        if getattr(self.app.broker, "alias", None) == "default":
            return False  # the broker is that database: what it takes is part of the transaction
        from .models import OutboxParcel

        parcel = OutboxParcel(content=_encode(Parcel(list(messages), list(joins))).decode())
        try:
            with transaction.atomic():
                parcel.save(force_insert=True)
        except DatabaseError as problem:
            raise ImproperlyConfigured(
                f"The outbox cannot take task {messages[0].task}[{messages[0].id}]: {problem}. Run `manage.py migrate celeriac`, "
                "or set CELERY_TASK_OUTBOX = False to publish within transactions at once."
            ) from problem
        committed: list[int] = connection.__dict__.setdefault("celeriac_parcels", [])
        committed.append(parcel.pk)
        # One call for all that the transaction sends; each registers it, since a savepoint that is rolled back takes its own along.
        transaction.on_commit(self.flush)
        return True

    def flush(self) -> None:
        """Publishes what this connection's transaction has sent, after its commit; or, in a test whose transaction will never commit, when the test wants to see it. Raises nothing."""
        from django.db import connection

        keys = connection.__dict__.pop("celeriac_parcels", [])
        if not keys:
            return
        try:
            self.publish(keys)
        except (CeleriacError, OSError) as problem:
            # It is committed: the relay will do it, and a view must not fail for it.
            logger.warning("Not published yet, %d parcel(s) wait in the outbox: %s", len(keys), problem)

    def publish(self, keys: Sequence[int]) -> None:
        """Publishes these parcels, in one call, and deletes them; those that are gone were rolled back, or somebody else has done it. Raises EnqueueError."""
        from .models import OutboxParcel

        rows = list(OutboxParcel.objects.filter(pk__in=keys).order_by("pk"))
        self._send([_decode(row.content.encode()) for row in rows])
        OutboxParcel.objects.filter(pk__in=[row.pk for row in rows]).delete()

    def relay(self, older_than_seconds: float = LEFT_BEHIND_SECONDS) -> int:
        """Publishes what was left behind; returns how many parcels. No two do it to the same one at once. Raises EnqueueError; then it is all there still."""
        from django.db import connection, transaction
        from django.utils import timezone

        from .models import OutboxParcel

        left = OutboxParcel.objects.filter(created_at__lt=timezone.now() - timedelta(seconds=older_than_seconds)).order_by("pk")
        if not left.exists():
            return 0
        published = 0
        while True:
            with transaction.atomic():
                if connection.features.has_select_for_update_skip_locked:
                    left = left.select_for_update(skip_locked=True)
                rows = list(left[:BATCH])
                parcels = [_decode(row.content.encode()) for row in rows]
                self._send([parcel for parcel in parcels if not self._has_run(parcel)])
                OutboxParcel.objects.filter(pk__in=[row.pk for row in rows]).delete()
            published += len(rows)
            if len(rows) < BATCH:
                return published

    def _send(self, parcels: Sequence[Parcel]) -> None:
        messages = [message for parcel in parcels for message in parcel.messages]
        joins = [join for parcel in parcels for join in parcel.joins]
        if messages or joins:
            self.app.producer.publish(messages, joins=joins, at_once=True)

    def _has_run(self, parcel: Parcel) -> bool:
        """True when it had been published, as its results show, and only the row stayed."""
        ids = [message.id for message in parcel.messages if not message.ignore_result]
        try:
            return bool(ids and self.app.backend.fetch(ids))
        except NotImplementedError:  # results are disabled
            return False


class Relay:
    """A thread of a worker process that looks for what others left behind."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._ended = threading.Event()
        self._trouble = Trouble(logger, "The outbox")
        self._thread = threading.Thread(target=self._run, name="celeriac-outbox", daemon=True)

    def start(self, **_: Any) -> None:
        self._thread.start()

    def stop(self, **_: Any) -> None:
        self._ended.set()

    def _run(self) -> None:
        from django.db import DatabaseError, connection

        while not self._ended.wait(RELAY_SECONDS * random.uniform(0.5, 1.0)):
            try:
                self._outbox.relay()
                self._trouble.over()
            except (DatabaseError, EnqueueError, OSError) as problem:
                self._trouble.seen(problem)
            finally:
                connection.close()


def install(app: Celeriac) -> None:
    """From now on the app's messages pass the outbox, and each worker process that begins has a relay."""
    app.outbox = Outbox(app)
    events.worker_process_init.connect(_start_relay, dispatch_uid="celeriac.django.outbox")


def _start_relay(**_: Any) -> None:
    from .project import ensure_app

    app = ensure_app()
    if isinstance(app.outbox, Outbox) and app.settings.task_outbox:
        relay = Relay(app.outbox)
        events.worker_process_shutdown.connect(relay.stop, weak=False)
        relay.start()
