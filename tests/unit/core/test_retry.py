"""When to try again."""

from __future__ import annotations

from celeriac.core.retry import backoff_seconds


def test_doubles_up_to_the_maximum() -> None:
    assert [backoff_seconds(n, factor=3, maximum=40, jitter=False) for n in range(6)] == [3, 6, 12, 24, 40, 40]
    assert backoff_seconds(3, factor=1, maximum=None, jitter=False) == 8


def test_is_never_negative_or_slow() -> None:
    assert backoff_seconds(-5, factor=2, jitter=False) == 2
    assert backoff_seconds(10**9, factor=1, maximum=600, jitter=False) == 600
    assert backoff_seconds(3, factor=-2, jitter=False) == 0


def test_jitter_is_anything_from_nothing_to_all() -> None:
    assert backoff_seconds(2, factor=2, random=lambda end: end - 1) == 8
    assert backoff_seconds(2, factor=2, random=lambda end: 0) == 0
    seen = {backoff_seconds(1, factor=1) for _ in range(200)}
    assert seen == {0, 1, 2}
