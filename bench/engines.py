"""The engines, who is measured on each, and what is aimed at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import raw, servers
from .figures import Numbers, Sizes
from .raw import postgresql as raw_postgresql
from .raw import rabbitmq as raw_rabbitmq
from .raw import redis as raw_redis
from .raw import sqlite as raw_sqlite
from .servers import Server
from .sides import Place

ServerStart = Callable[[Path], contextlib.AbstractContextManager[Server]]
SERVERS: dict[str, ServerStart] = {"redis": servers.redis, "postgresql": servers.postgresql, "rabbitmq": servers.rabbitmq}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure of Celeriac's should reach."""

    key: str
    times: float = 0.0
    """So many times better than `than`."""
    than: str = ""
    """A side; `raw` for the driver; "" for the best of all others but `but`."""
    but: str = ""
    below: float = 0.0
    at_least: float = 0.0
    or_key: str = ""
    """`at_least` may be reached by this figure instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One value of `--engine`."""

    title: str
    sides: tuple[str, ...]
    """Celeriac first, then the peer by which it is measured."""
    broker: str | None
    """The server; None for a file."""
    backend: str | None = None
    """Where results go when not there."""
    peers_broker: str | None = None
    """Where the peers' messages go when not there."""
    figures: tuple[str, ...]
    """Measured when nothing else is asked for."""
    raw_call: Callable[[Place, Path, raw.Stored, int], float]
    raw_drain: Callable[[Place, Path, raw.Stored, int], float]
    raw_trips: Callable[[Place, Path, raw.Stored, int], Numbers] | None = None
    targets: tuple[Target, ...]

    def servers(self, sides: list[str]) -> list[str]:
        """Those that these sides need."""
        needed = [self.broker if side == "celeriac" else self.peers_broker or self.broker for side in sides]
        return list(dict.fromkeys(name for name in [*needed, self.backend] if name is not None))

    def place(self, side: str, running: Mapping[str, Server]) -> Place:
        broker = self.broker if side == "celeriac" else self.peers_broker or self.broker
        if broker is None:
            return Place("SQLite")
        backend = running[self.backend] if self.backend else None
        title = running[broker].title + (f", results in {backend.title}" if backend else "")
        return Place(title, running[broker], backend)

    def raw_limits(self, place: Place, only: list[str], sizes: Sizes, directory: Path, stored: raw.Stored) -> Numbers:
        """What the driver can do, for those figures that have such a limit."""
        numbers: Numbers = {}
        directory.mkdir()
        for server in place.servers():
            server.empty()
        if "throughput" in only:
            numbers["drain_per_s"] = self.raw_drain(place, directory, stored, sizes.raw_rows)
        if "delay" in only:
            numbers["delay_us"] = self.raw_call(place, directory, stored, sizes.delays)
        if "latency" in only and self.raw_trips is not None:
            numbers |= self.raw_trips(place, directory, stored, sizes.latencies)
        return numbers


def _url(place: Place) -> str:
    assert place.broker is not None
    return place.broker.url()


_LATENCIES = ("throughput", "sustained", "delay", "latency")

ENGINES: dict[str, Engine] = {
    "sqlite": Engine(
        title="SQLite",
        sides=("celeriac", "celery"),
        broker=None,
        peers_broker="redis",
        figures=("throughput", "delay", "latency", "fairness", "idle", "memory", "eta"),
        raw_call=lambda place, directory, stored, count: raw_sqlite.call_us(directory, stored, count),
        raw_drain=lambda place, directory, stored, count: raw_sqlite.drain_rate(directory, stored, count),
        targets=(
            Target(key="drain_per_s", times=20, than="celery"),
            Target(key="delay_us", times=5, than="celery"),
            Target(key="start_p50_ms", below=0.5),
            Target(key="result_p50_ms", below=0.6),
            Target(key="at_once_start_p50_ms", below=0.5),
            Target(key="at_once_p50_ms", below=0.6),
            Target(key="fairness_idle_ms", below=100),
            Target(key="fairness_loaded_ms", below=100),
            Target(key="idle_cpu_s_per_min", below=0.5),
            Target(key="pss_mb", below=100),
            Target(key="eta_mb", below=5),
        ),
    ),
    "redis": Engine(
        title="Redis",
        sides=("celeriac", "celery", "huey", "taskiq", "dramatiq", "rq", "saq"),
        broker="redis",
        figures=(*_LATENCIES, "io"),
        raw_call=lambda place, directory, stored, count: raw_redis.call_us(_url(place), stored, count),
        raw_drain=lambda place, directory, stored, count: raw_redis.drain_rate(_url(place), stored, count),
        raw_trips=lambda place, directory, stored, count: raw_redis.round_trips(_url(place), stored, count),
        targets=(
            Target(key="drain_per_s", times=40, than="celery"),
            Target(key="drain_per_s", times=10, but="celery"),
            Target(key="sustained_per_s", times=40, than="celery"),
            Target(key="delay_us", times=5, than="celery"),
            Target(key="delay_us", times=0.5, than="raw"),
            Target(key="at_once_p50_ms", below=0.5),
            Target(key="at_once_p99_ms", below=3),
            Target(key="result_p50_ms", below=0.5),
            Target(key="result_p99_ms", below=3),
            Target(key="io_share_of_ideal", at_least=80, or_key="io_cores"),
            Target(key="io_per_s", times=1, than="taskiq"),
        ),
    ),
    "postgresql": Engine(
        title="PostgreSQL",
        sides=("celeriac", "procrastinate"),
        broker="postgresql",
        figures=_LATENCIES,
        raw_call=lambda place, directory, stored, count: raw_postgresql.call_us(_url(place), stored, count),
        raw_drain=lambda place, directory, stored, count: raw_postgresql.drain_rate(_url(place), stored, count),
        raw_trips=lambda place, directory, stored, count: raw_postgresql.round_trips(_url(place), stored, count),
        targets=(
            Target(key="drain_per_s", times=20, than="procrastinate"),
            Target(key="sustained_per_s", times=20, than="procrastinate"),
            Target(key="at_once_p50_ms", below=1),
            Target(key="at_once_p99_ms", below=3),
            Target(key="result_p50_ms", below=1),
            Target(key="result_p99_ms", below=3),
        ),
    ),
    "rabbitmq": Engine(
        title="RabbitMQ",
        sides=("celeriac", "celery", "dramatiq"),
        broker="rabbitmq",
        backend="redis",
        figures=_LATENCIES,
        raw_call=lambda place, directory, stored, count: raw_rabbitmq.call_us(_url(place), stored, count),
        raw_drain=lambda place, directory, stored, count: raw_rabbitmq.drain_rate(*place.urls(directory), stored, count),
        raw_trips=lambda place, directory, stored, count: raw_rabbitmq.round_trips(*place.urls(directory), stored, count),
        targets=(
            Target(key="drain_per_s", times=8, than="celery"),
            Target(key="sustained_per_s", times=8, than="celery"),
            Target(key="at_once_p50_ms", times=0.46, than="dramatiq"),  # 1 ms, where Dramatiq needs 0.46
            Target(key="at_once_p50_ms", below=1),
            Target(key="at_once_p99_ms", below=3),
            Target(key="result_p50_ms", below=1),
            Target(key="result_p99_ms", below=3),
        ),
    ),
}
