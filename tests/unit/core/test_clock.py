"""The machine's clocks."""

from __future__ import annotations

import time

from celeriac.core.clock import SYSTEM_CLOCK


def test_go_on() -> None:
    assert abs(SYSTEM_CLOCK.time() - time.time()) < 5
    first = SYSTEM_CLOCK.monotonic()
    assert SYSTEM_CLOCK.monotonic() >= first
