"""Stands between a client and a server, and does what networks do: it delays, goes silent, loses, breaks off, refuses."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

How = Literal["FIN", "RST"]
CONNECT_SECONDS = 30.0
TURN_SECONDS = 40.0
"""How long its thread may take to do what it is told."""


class Proxy:
    """Listens on a free port of the loopback, and passes on to `target` what comes. A thread of its own does it all."""

    def __init__(self, target: int, *, port: int = 0) -> None:
        self.target = target
        self.latency_seconds = 0.0
        """Each way."""
        self.stalled = False
        self.swallows = False
        self.words = b""
        self.lost = False
        """What was to be lost has been said."""
        self.pairs: set[_Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy to {target}", daemon=True)
        self._thread.start()
        self.port = port
        self._server: asyncio.Server | None = None
        self._do(self._listen)

    # -- what a network may do -----------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Nothing arrives any more, and nobody is told; it comes all at once with `flow`. New connections are made and hear nothing."""
        self.stalled = True

    def flow(self) -> None:
        """The end of `stall`."""

        async def flow() -> None:
            self.stalled = False
            for pair in list(self.pairs):
                pair.flow()

        self._do(flow)

    def swallow(self) -> None:
        """Like `stall`, but what is sent meanwhile is lost, as behind a firewall that forgets."""
        self.swallows = True

    def remember(self) -> None:
        """The end of `swallow`: the connections from before it stay dead without a word; new ones work."""

        async def remember() -> None:
            self.swallows = False
            for pair in self.pairs:
                pair.forgotten = True

        self._do(remember)

    def lose(self, words: bytes) -> None:
        """The next connection over which a client says this is dead from there on, without a word: this is the first that does not arrive."""
        self.lost = False
        self.words = words

    def cut(self, how: How = "FIN") -> int:
        """All connections end, on both sides; returns how many there were. New ones may be made."""

        async def cut() -> int:
            pairs = list(self.pairs)
            for pair in pairs:
                pair.end(how)
            return len(pairs)

        return int(self._do(cut))

    def refuse(self) -> None:
        """Nobody listens any more; what is connected stays."""

        async def refuse() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            await asyncio.sleep(0)

        self._do(refuse)

    def accept(self) -> None:
        """The end of `refuse`: on the same port again."""
        self._do(self._listen)

    def close(self) -> None:
        """Ends all connections and the thread."""
        if self._loop.is_closed():
            return
        self.refuse()
        self.cut()
        self._do(self._last_turn)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TURN_SECONDS)
        self._loop.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await self._loop.create_server(lambda: _Pair(self), "127.0.0.1", self.port, backlog=200)
            self.port = int(self._server.sockets[0].getsockname()[1])

    async def _last_turn(self) -> None:
        for task in asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}:
            task.cancel()
        await asyncio.sleep(0)

    def _do(self, coroutine: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine(), self._loop).result(TURN_SECONDS)


class _Pair(asyncio.Protocol):
    """One connection of a client, and ours to the server. (As a protocol it is the client's side.)"""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.forgotten = False
        self.ended = False
        self.client: _Way | None = None
        self.server: _Way | None = None
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client = _Way(self, transport)
        self.proxy.pairs.add(self)
        self._connecting = self.proxy._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            making = self.proxy._loop.create_connection(lambda: _ServerSide(self), "127.0.0.1", self.proxy.target)
            transport, _ = await asyncio.wait_for(making, CONNECT_SECONDS)
        except OSError:
            self.end("RST")
            return
        if self.ended:
            transport.abort()
            return
        self.server = _Way(self, transport)
        if self._early:
            self.server.pass_on(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.proxy.words and self.proxy.words in data:
            self.proxy.words, self.proxy.lost, self.forgotten = b"", True, True
        if self.server is not None:
            self.server.pass_on(data)
        elif not self.proxy.swallows:
            self._early += data

    def connection_lost(self, error: Exception | None) -> None:
        self.side_lost(self.server)

    def side_lost(self, other: _Way | None) -> None:
        if other is not None and not self.ended:
            other.pass_on(None)
        else:
            self.end("FIN")

    def flow(self) -> None:
        for way in (self.client, self.server):
            if way is not None:
                way.flow()

    def end(self, how: How) -> None:
        self.ended = True
        self.proxy.pairs.discard(self)
        for way in (self.client, self.server):
            if way is not None:
                way.end(how)


class _ServerSide(asyncio.Protocol):
    def __init__(self, pair: _Pair) -> None:
        self.pair = pair

    def data_received(self, data: bytes) -> None:
        if self.pair.client is not None:
            self.pair.client.pass_on(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.pair.side_lost(self.pair.client)


class _Way:
    """What flows towards one end. None stands for its end."""

    def __init__(self, pair: _Pair, transport: Any) -> None:
        self.pair = pair
        self.proxy = pair.proxy
        self.transport = transport
        self.held: deque[bytes | None] = deque()

    def pass_on(self, data: bytes | None) -> None:
        if data is not None and (self.proxy.swallows or self.pair.forgotten):
            return
        if self.proxy.stalled:
            self.held.append(data)
        elif self.proxy.latency_seconds or self.held:
            self.held.append(data)
            self.proxy._loop.call_later(self.proxy.latency_seconds, self._next)
        else:
            self._write(data)

    def flow(self) -> None:
        while self.held:
            self._write(self.held.popleft())

    def _next(self) -> None:
        if self.held and not self.proxy.stalled:
            self._write(self.held.popleft())

    def _write(self, data: bytes | None) -> None:
        if data is None:
            self.pair.end("FIN")
        elif not self.transport.is_closing():
            self.transport.write(data)

    def end(self, how: How) -> None:
        self.held.clear()
        if how == "RST":
            with suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
