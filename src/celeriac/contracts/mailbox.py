"""How workers and people talk past the queues: who is there, letters to them, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct


class Node(Struct, frozen=True, kw_only=True):
    """One running worker."""

    id: str
    """New at each start."""
    name: str
    """As people call it: `celeriac@host`."""
    host: str = ""
    boot: str = ""
    """Names this run of the machine's kernel, so that a process id of before a reboot is not taken for one of now."""
    pid: int = 0
    started_at: float = 0.0
    queues: list[str] = []
    tasks: list[str] = []
    pool: str = ""
    concurrency: int = 0
    version: str = ""
    lease_left_seconds: float = 0.0
    """Filled in by the engine when it lists nodes; negative when the lease has run out."""


class Letter(Struct, frozen=True, kw_only=True):
    """A command to a node, or an answer to whoever asked."""

    method: str
    arguments: dict[str, Any] = {}
    reply_to: str | None = None
    ticket: str = ""
    sender: str = ""


class Mailbox(Protocol):
    """Letters are kept for a minute, not for ever: who does not collect them misses them."""

    def nodes(self) -> list[Node]:
        """All registered nodes, also those whose lease has run out and which nobody has reclaimed yet."""
        ...

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        """Puts the letter into each mailbox; an address is a node's id or any name that somebody collects at."""
        ...

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        """Takes out all letters of a mailbox, oldest first; waits up to `timeout_seconds` for the first. Costs next to nothing when there are none."""
        ...
