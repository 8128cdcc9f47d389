"""The clock whose hands a test turns."""

from __future__ import annotations

import pytest

from celeriac.core.clock import Clock
from celeriac.testing import FakeClock


def test_it_stands_still_until_it_is_advanced() -> None:
    clock: Clock = FakeClock(time=100.0, monotonic=5.0)
    assert (clock.time(), clock.time(), clock.monotonic()) == (100.0, 100.0, 5.0)


def test_advance_moves_both_clocks() -> None:
    clock = FakeClock(time=100.0, monotonic=5.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (102.5, 7.5)


@pytest.mark.parametrize("seconds", [-50.0, 50.0])
def test_jump_wall_moves_only_the_wall_clock(seconds: float) -> None:
    clock = FakeClock(time=100.0, monotonic=5.0)
    clock.jump_wall(seconds)
    assert (clock.time(), clock.monotonic()) == (100.0 + seconds, 5.0)


def test_time_does_not_go_back() -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match=r"jump_wall"):
        clock.advance(-1)
