"""Task ids."""

from __future__ import annotations

import os
import uuid

from celeriac.core.ids import new_id


def test_are_uuids_of_version_7() -> None:
    for _ in range(300):
        parsed = uuid.UUID(new_id())
        assert parsed.version == 7 and parsed.variant == uuid.RFC_4122


def test_are_unique_and_grow() -> None:
    ids = [new_id() for _ in range(5000)]
    assert len(set(ids)) == 5000
    moments = [identity[:13] for identity in ids]
    assert moments == sorted(moments)


def test_a_forked_process_makes_others() -> None:
    new_id()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, " ".join(new_id() for _ in range(50)).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as file:
        theirs = file.read().split()
    tails = {identity[14:] for identity in theirs}
    assert len(tails) == 50 and not tails & {new_id()[14:] for _ in range(200)}
