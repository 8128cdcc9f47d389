"""How far a task is, over a WebSocket: a consumer for Channels (`pip install "celeriac[channels]"`)."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path

from ..core.errors import CeleriacError
from . import progress
from .keys import task_of

TRY_AGAIN = 1013
"""The code with which a socket is closed when results cannot be read just now."""


class ProgressConsumer(AsyncWebsocketConsumer):
    """Sends the status as JSON: at once, then with each change, and closes when the task has ended. Whoever may not see it is not let in."""

    _telling: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        key = self.scope["url_route"]["kwargs"]["key"]
        task_id = await database_sync_to_async(task_of)(key, self.scope.get("user"))
        if task_id is None:
            await self.close()
            return
        await self.accept()
        self._telling = asyncio.create_task(self._tell(task_id))

    async def disconnect(self, code: Any) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _tell(self, task_id: str) -> None:
        try:
            async with aclosing(progress.afollow(task_id, math.inf)) as changes:
                async for found in changes:
                    if found is not None:
                        await self.send(json.dumps(found, cls=progress.Encoder))
            await self.close()
        except (CeleriacError, OSError):
            await self.close(TRY_AGAIN)


websocket_urlpatterns = [path("celeriac/<path:key>", ProgressConsumer.as_asgi())]
"""For Channels' URLRouter."""
