from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from celeriac.core.errors import ImproperlyConfigured
from celeriac.worker.rates import RateLimits, parse_rate


@pytest.mark.parametrize(
    ("text", "per_second"), [("10/s", 10.0), ("120/m", 2.0), ("36/h", 0.01), (5, 5.0), ("2.5", 2.5), (None, 0.0), (0, 0.0), ("0", 0.0)]
)
def test_rates(text, per_second):
    assert parse_rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize("text", ["ten/s", "10/y", "/s", [1]])
def test_a_wrong_rate_says_how_to_write_one(text):
    with pytest.raises(ImproperlyConfigured, match="Invalid rate limit"):
        parse_rate(text)


@pytest.fixture
def buckets():
    fd = RateLimits.create()
    yield fd
    os.close(fd)


def limited(name: str, rate: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, rate_limit=rate)


def test_a_token_at_a_time(buckets: int):
    limits = RateLimits(buckets, ["t", "other"])
    assert limits.pause_seconds(limited("t", "1/h")) == 0.0
    assert 3590 < limits.pause_seconds(limited("t", "1/h")) <= 3600
    assert limits.pause_seconds(limited("other", "1/h")) == 0.0


def test_processes_share_the_tokens(buckets: int):
    limits = RateLimits(buckets, ["t"])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if RateLimits(buckets, ["t"]).pause_seconds(limited("t", "1/h")) == 0.0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert limits.pause_seconds(limited("t", "1/h")) > 3000
