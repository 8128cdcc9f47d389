"""The lease of a node: how a worker says that it lives, and notices who does not."""

from __future__ import annotations

import logging
import os
import socket
import time

from msgspec import structs

from ..contracts.broker import Broker
from ..contracts.mailbox import Node
from ..core.errors import EngineUnavailable
from ..core.ids import new_id

logger = logging.getLogger("celeriac.worker")


AGAIN_SECONDS = 1.0
"""So soon a heartbeat is repeated that could not look for silent nodes."""


class NodeLease:
    """One node's registration. All it holds is renewed by one heartbeat."""

    def __init__(self, broker: Broker, node: Node, *, heartbeat_seconds: float, lease_seconds: float) -> None:
        self.broker = broker
        self.node = node
        self.heartbeat_seconds = heartbeat_seconds
        self.lease_seconds = lease_seconds
        self.until = 0.0
        """It has been confirmed until then (seconds of the monotonic clock)."""
        self.well = False
        """The last heartbeat did all that it has to."""
        self._next_beat = 0.0

    def begin(self) -> None:
        """Registers, under a new id each time, and takes back at once what dead workers of this machine held."""
        self._next_beat = 0.0  # until this has come to its end, the next beat says what there is
        self.node = structs.replace(self.node, id=new_id(), started_at=time.time())
        now = time.monotonic()
        self.broker.register(self.node, lease_seconds=self.lease_seconds)
        self.until = now + self.lease_seconds
        self.reclaim()
        self._next_beat = time.monotonic() + self.heartbeat_seconds
        self.well = True

    def beat(self) -> bool:
        """Renews when it is time. False: the lease has run out, and what this node held is not its own any more."""
        now = time.monotonic()
        if now < self._next_beat:
            return True
        self.well = False
        alive = self.broker.heartbeat(self.node.id, lease_seconds=self.lease_seconds)
        self._next_beat = now + min(AGAIN_SECONDS, self.heartbeat_seconds)
        if alive:
            self.until = now + self.lease_seconds
            self.reclaim()
            self._next_beat = now + self.heartbeat_seconds
            self.well = True
        return alive

    def reclaim(self) -> None:
        """Makes ready again what silent nodes hold, and dead nodes of this machine, for which nobody has to wait."""
        dead = [node.id for node in self.broker.nodes() if self._is_dead_neighbour(node)]
        messages = self.broker.reclaim(dead)
        if messages:
            logger.warning("%d tasks of workers that are gone are ready again.", len(messages))

    def end(self) -> None:
        """Goes away; what is still held is ready again."""
        try:
            self.broker.unregister(self.node.id)
        except EngineUnavailable as error:
            logger.warning("This worker could not sign off; others will notice in %g s: %s", self.lease_seconds, error)

    def rival(self) -> Node | None:
        """Another living worker of this machine with our name, if there is one."""
        for node in self.broker.nodes():
            if node.name == self.node.name and self._is_neighbour(node) and not self._is_dead_neighbour(node) and node.pid != os.getpid():
                return node
        return None

    def _is_neighbour(self, node: Node) -> bool:
        return node.host == self.node.host and node.boot == self.node.boot and bool(node.boot)

    def _is_dead_neighbour(self, node: Node) -> bool:
        if node.id == self.node.id or not self._is_neighbour(node):
            return False
        if node.pid == os.getpid():
            return True
        try:
            os.kill(node.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(node.pid)


def _is_zombie(pid: int) -> bool:
    """Dead, and not yet buried by its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def this_host() -> str:
    return socket.gethostname()


def this_boot() -> str:
    """Names this run of the kernel and this process's view of process ids; empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
