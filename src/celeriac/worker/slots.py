"""A page of memory that a supervisor shares with one of its processes.

With it the supervisor sees, while the process is deep in C code that holds the GIL, what runs there, since when and until when it may, and what is finished
but not settled. The process writes; the supervisor reads, and writes only the two words that command (`generation`, `stop`), its answer to a harvest, and until when the node's lease holds.

    header                     generation · stop │ harvested · taken · kept │ state · batch size · outcomes · bytes of them · tasks done
                               number of the batch (odd while it is open) · batch of the last harvest │ until when the lease holds
    place 0 … concurrency-1    started, soft and hard deadline (seconds of the monotonic clock), position in the batch, id
    ring                       finished, unsettled outcomes of this batch: length and JSON of each Settlement

A store of one aligned word is atomic, and stores are seen in the order in which they were made (x86) or, elsewhere, within the
microseconds that `Page.command` waits before anything is read back. Where that should ever fail, the fence of each settlement still holds.

Writing a place costs 0.2 µs, an outcome 0.3 µs.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from enum import IntEnum

import msgspec
from msgspec import Struct

from ..core.message import Settlement

_WORDS = struct.Struct("<II")
_ANSWER = struct.Struct("<III")
_STATE = struct.Struct("<I")
_BATCH = struct.Struct("<III")
_DONE = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_PLACE = struct.Struct("<dddIH1018s")
_PLACE_LENGTH = struct.Struct("<H")
_MOMENT = struct.Struct("<d")

_COMMAND_AT = 0
_ANSWER_AT = 8
_STATE_AT = 20
_BATCH_AT = 24
_DONE_AT = 40
_NUMBER_AT = 48
_HARVESTED_AT = 52
_LEASE_AT = 56
_PLACES_AT = 64
_PLACE_BYTES = 1048
_PLACE_LENGTH_AT = 28

RING_BYTES = 512 * 1024

EVERYTHING = 0xFFFFFFFF
"""`kept` when the supervisor could not harvest: the whole batch is still the process's own."""
NOTHING = 0xFFFFFFFE
"""`kept` when no task was running."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Settlement).decode


class ProcessState(IntEnum):
    """What a process is doing."""

    STARTING = 0
    IDLE = 1
    BUSY = 2


class Running(Struct, frozen=True):
    """A task that runs now. Times are seconds of `time.monotonic()`; a deadline of 0.0 means none."""

    place: int
    task_id: str
    started_at: float
    soft_deadline: float
    hard_deadline: float
    position: int


class Harvest(Struct, frozen=True):
    """The supervisor's answer: how many outcomes of the batch it has settled in all, and which position it took for running."""

    taken: int
    kept: int


class Page:
    """One process's page. Make it with `create` before the fork, or with `attach` from an inherited descriptor."""

    def __init__(self, memory: mmap.mmap, places: int, fd: int) -> None:
        self._memory = memory
        self._ring_at = _PLACES_AT + places * _PLACE_BYTES
        self.places = places
        self.fd = fd
        self._outcomes = 0
        self._used = 0
        self._number = 0

    @classmethod
    def create(cls, places: int) -> Page:
        """A fresh page for a process that runs up to `places` tasks at once."""
        fd = anonymous_file("celeriac-page")
        os.ftruncate(fd, _PLACES_AT + places * _PLACE_BYTES + RING_BYTES)
        return cls.attach(fd, places)

    @classmethod
    def attach(cls, fd: int, places: int) -> Page:
        """The page behind a descriptor that was inherited."""
        return cls(mmap.mmap(fd, _PLACES_AT + places * _PLACE_BYTES + RING_BYTES), places, fd)

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()
        os.close(self.fd)

    # -- the process's side ------------------------------------------------------------------------------------

    def set_state(self, state: ProcessState) -> None:
        _STATE.pack_into(self._memory, _STATE_AT, state)

    def begin_batch(self, size: int) -> None:
        """The ring is empty from here; call it once the former batch is settled. Look at `command` before this: to a later one the supervisor
        will expect an answer."""
        self.end_batch()
        self._outcomes = self._used = 0
        _BATCH.pack_into(self._memory, _BATCH_AT, size, 0, 0)
        if size:
            self._number += 1
            _LENGTH.pack_into(self._memory, _NUMBER_AT, self._number & 0xFFFFFFFF)

    def end_batch(self) -> None:
        """What is finished is about to be settled: from here no harvest takes of it. Look at `command` after this: one may be under way."""
        if self._number & 1:
            self._number += 1
            _LENGTH.pack_into(self._memory, _NUMBER_AT, self._number & 0xFFFFFFFF)

    def start(self, place: int, task_id: str, position: int, started_at: float, soft_deadline: float, hard_deadline: float) -> None:
        """A task is about to run. Look at `command` after this, not before: then either the supervisor sees the task, or we see the command."""
        encoded = task_id.encode()[:1018]
        _PLACE.pack_into(
            self._memory,
            _PLACES_AT + place * _PLACE_BYTES,
            started_at,
            soft_deadline,
            hard_deadline,
            position,
            len(encoded),
            encoded,
        )

    def finish(self, settlement: Settlement) -> bool:
        """Keeps an outcome where it survives this process. False when the ring is full: settle first, then `begin_batch` anew."""
        data = _encode(settlement)
        at = self._used
        end = at + 4 + len(data)
        if end > RING_BYTES:
            return False
        base = self._ring_at
        _LENGTH.pack_into(self._memory, base + at, len(data))
        self._memory[base + at + 4 : base + end] = data
        self._used = end
        self._outcomes += 1
        _WORDS.pack_into(self._memory, _BATCH_AT + 4, self._outcomes, end)
        return True

    def soft_limit_raised(self, place: int) -> None:
        """The task at this place has been told of its soft limit."""
        _MOMENT.pack_into(self._memory, _PLACES_AT + place * _PLACE_BYTES + 8, 0.0)

    def clear(self, place: int) -> None:
        """Nothing runs at this place any more."""
        _PLACE_LENGTH.pack_into(self._memory, _PLACES_AT + place * _PLACE_BYTES + _PLACE_LENGTH_AT, 0)

    def count(self, done: int) -> None:
        """How many tasks this process has finished so far."""
        _DONE.pack_into(self._memory, _DONE_AT, done)

    def command(self) -> tuple[int, int]:
        """(generation, stop): a new generation means the supervisor harvests; stop means to start nothing more."""
        return _WORDS.unpack_from(self._memory, _COMMAND_AT)

    def lease_until(self) -> float:
        """Until then (seconds of the monotonic clock) what this process holds is its own, whatever happens; later it may be."""
        return float(_MOMENT.unpack_from(self._memory, _LEASE_AT)[0])

    def harvest(self, generation: int) -> Harvest | None:
        """The supervisor's answer to this generation, once it is there."""
        done, taken, kept = _ANSWER.unpack_from(self._memory, _ANSWER_AT)
        return Harvest(taken, kept) if done == generation else None

    # -- the supervisor's side ---------------------------------------------------------------------------------

    def state(self) -> ProcessState:
        return ProcessState(_STATE.unpack_from(self._memory, _STATE_AT)[0])

    def batch(self) -> int:
        """The number of the batch that a harvest may take of; 0 when there is none at the moment."""
        (number,) = _LENGTH.unpack_from(self._memory, _NUMBER_AT)
        return int(number) if number & 1 else 0

    def hostages(self) -> int:
        """How many of the batch are held up by what runs: not begun, or finished and not settled."""
        (size,) = _LENGTH.unpack_from(self._memory, _BATCH_AT)
        return max(0, int(size) - 1 - self.taken())

    def done(self) -> int:
        return int(_DONE.unpack_from(self._memory, _DONE_AT)[0])

    def running(self) -> list[Running]:
        """What runs now."""
        found = []
        for place in range(self.places):
            started, soft, hard, position, length, encoded = _PLACE.unpack_from(self._memory, _PLACES_AT + place * _PLACE_BYTES)
            if length:
                found.append(Running(place, encoded[:length].decode(errors="replace"), started, soft, hard, position))
        return found

    def outcomes(self) -> list[Settlement]:
        """What is finished and not settled yet, neither by the process nor by a harvest (as far as the page knows)."""
        return list(self._read_ring())[self.taken() :]

    def taken(self) -> int:
        """How many outcomes of this batch harvests have settled."""
        number, harvested = _WORDS.unpack_from(self._memory, _NUMBER_AT)
        same = harvested and harvested == (number if number & 1 else number - 1)
        return int(_LENGTH.unpack_from(self._memory, _ANSWER_AT + 4)[0]) if same else 0

    def _read_ring(self) -> Iterator[Settlement]:
        _, _, used = _BATCH.unpack_from(self._memory, _BATCH_AT)
        at = 0
        while at < used:
            (length,) = _LENGTH.unpack_from(self._memory, self._ring_at + at)
            yield _decode(self._memory[self._ring_at + at + 4 : self._ring_at + at + 4 + length])
            at += 4 + length

    def renew(self, lease_until: float) -> None:
        """Says until when the lease of the node holds."""
        _MOMENT.pack_into(self._memory, _LEASE_AT, lease_until)

    def raise_generation(self) -> int:
        """Asks the process to start nothing more of its batch until `answer`. Returns the new generation."""
        generation, _ = _WORDS.unpack_from(self._memory, _COMMAND_AT)
        generation = (generation + 1) & 0xFFFFFFFF
        _LENGTH.pack_into(self._memory, _COMMAND_AT, generation)
        time.sleep(0.0005)
        return int(generation)

    def answer(self, generation: int, harvest: Harvest, batch: int = 0) -> None:
        """The harvest is over. `batch`: the one of which it took outcomes."""
        _WORDS.pack_into(self._memory, _ANSWER_AT + 4, harvest.taken, harvest.kept)
        if batch:
            _LENGTH.pack_into(self._memory, _HARVESTED_AT, batch)
        _LENGTH.pack_into(self._memory, _ANSWER_AT, generation)

    def stop(self) -> None:
        """Asks the process to finish what runs, give back the rest and end."""
        _LENGTH.pack_into(self._memory, _COMMAND_AT + 4, 1)


def anonymous_file(name: str) -> int:
    """A descriptor of memory that processes can share."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
