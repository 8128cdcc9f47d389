"""When to try again."""

from __future__ import annotations

from collections.abc import Callable


def backoff_seconds(
    retries: int,
    *,
    factor: float = 1,
    maximum: float | None = 600,
    jitter: bool = True,
    random: Callable[[int], int] | None = None,
) -> float:
    """The pause before the next try after `retries` retries: `factor`, doubled with each, at most `maximum`.

    With `jitter` anything from 0 to that, in whole seconds, so that tasks that failed together do not come back together. `random(n)` gives
    a number below n.
    """
    limit = float("inf") if maximum is None else float(maximum)
    # 2**64 seconds is for ever; a larger exponent would only be slow.
    seconds: float = max(0.0, min(limit, float(factor) * 2 ** min(max(retries, 0), 64)))
    if not jitter:
        return seconds
    return float((random or _random_below)(int(seconds) + 1))


def _random_below(end: int) -> int:
    from random import randrange  # it costs milliseconds to import, and most programs never retry

    return randrange(end)
