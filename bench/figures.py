"""What is measured. Each function takes one measurement of one side on a fresh broker and returns named numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from .processes import cpu_seconds, pss_megabytes, wait_until
from .sides import BenchError, Site

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each measurement is done; see `FULL` and `QUICK`."""

    rounds: int
    celeriac_drain: int
    celery_drain: int
    celeriac_backlog: int
    celery_backlog: int
    sustained_seconds: float
    delays: int
    latencies: int
    idle_seconds: float
    scheduled: int
    raw_rows: int

    def drain(self, site: Site) -> int:
        return self.celery_drain if site.side.name == "celery" else self.celeriac_drain

    def backlog(self, site: Site) -> int:
        return self.celery_backlog if site.side.name == "celery" else self.celeriac_backlog


FULL = Sizes(
    rounds=3,
    celeriac_drain=100_000,
    celery_drain=8_000,
    celeriac_backlog=150_000,
    celery_backlog=6_000,
    sustained_seconds=4.0,
    delays=4_000,
    latencies=300,
    idle_seconds=20.0,
    scheduled=100_000,
    raw_rows=100_000,
)
QUICK = Sizes(
    rounds=1,
    celeriac_drain=30_000,
    celery_drain=3_000,
    celeriac_backlog=40_000,
    celery_backlog=2_000,
    sustained_seconds=2.0,
    delays=1_000,
    latencies=100,
    idle_seconds=5.0,
    scheduled=10_000,
    raw_rows=30_000,
)


def throughput(site: Site, sizes: Sizes) -> Numbers:
    """The queue is filled, then a worker drains it. The rate between 10 % and 98 % of it, when both processes are surely there."""
    total = sizes.drain(site)
    ids = site.ask("publish", str(total))["ids"]
    with site.worker():
        rate = drain_rate(site, total)
        site.ask("verify", *ids)
    return {"drain_per_s": rate}


def drain_rate(site: Site, total: int, *, already: int = 0) -> float:
    """Tasks a second while a worker gets through `total` tasks; the counters stood at `already` before."""

    def done() -> int:
        return site.counts()[0] - already

    _wait(lambda: done() >= total * 0.10, "began on its queue")
    first, begun = done(), time.monotonic()
    _wait(lambda: done() >= total * 0.98, "came to the end of its queue")
    last, ended = done(), time.monotonic()
    _wait(lambda: done() >= total, "ran the last task")
    return (last - first) / (ended - begun)


def sustained(site: Site, sizes: Sizes) -> Numbers:
    """A producer sends flat out while the worker has work all the time: what is completed a second meanwhile, and what the producer gets sent."""
    preloaded = sizes.backlog(site)
    ids = site.ask("publish", str(preloaded))["ids"]
    with site.worker():
        _wait(lambda: site.counts()[0] > preloaded * 0.02, "began on its queue")
        with site.asking("produce", str(sizes.sustained_seconds + 3)) as answer:
            _wait(lambda: site.counts()[1] > 100, "was sent anything")
            (started, sent), begun = site.counts(), time.monotonic()

            def over() -> bool:
                done, extra = site.counts()
                return preloaded + extra - done < preloaded * 0.03 or time.monotonic() - begun > sizes.sustained_seconds

            _wait(over, "stopped")
            (started_then, sent_then), ended = site.counts(), time.monotonic()
            answer(120.0)
        site.ask("verify", *ids)
    seconds = ended - begun
    return {
        "sustained_per_s": (started_then - started) / seconds,
        "sent_per_s": (sent_then - sent) / seconds,
        "sustained_window_s": seconds,
    }


def delay(site: Site, sizes: Sizes) -> Numbers:
    """`.delay()` in a plain loop with no worker beside it: the mean of the loop."""
    return {"delay_us": site.ask("publish", str(sizes.delays), "300")["per_call_us"]}


def latency(site: Site, sizes: Sizes) -> Numbers:
    """One call at a time to an idle worker."""
    with site.worker():
        site.ask("ready")
        answer = site.ask("latency", str(sizes.latencies))
    return {
        "start_p50_ms": statistics.median(answer["start_ms"]),
        "start_p99_ms": _percentile(answer["start_ms"], 99),
        "result_p50_ms": statistics.median(answer["result_ms"]),
        "result_p99_ms": _percentile(answer["result_ms"], 99),
        "at_once_start_p50_ms": statistics.median(answer["at_once_start_ms"]),
        "at_once_p50_ms": statistics.median(answer["at_once_ms"]),
        "call_p50_us": statistics.median(answer["call_us"]),
    }


def fairness(site: Site, sizes: Sizes) -> Numbers:
    """40 short tasks behind one of 1 s: sent to an idle worker, and met by a busy one in the middle of a full queue."""
    with site.worker():
        site.ask("ready")
        idle = site.ask("fairness_idle")["worst_ms"]
    sent = site.ask("fairness_load")
    with site.worker():
        loaded = site.ask("fairness_collect", sent["long"], *sent["short"])["worst_ms"]
    return {"fairness_idle_ms": idle, "fairness_loaded_ms": loaded}


def idle(site: Site, sizes: Sizes) -> Numbers:
    """CPU time of the whole worker while there is nothing to do."""
    with site.worker() as worker:
        site.ask("ready")
        time.sleep(2.0)
        before, begun = cpu_seconds(worker), time.monotonic()
        time.sleep(sizes.idle_seconds)
        used, seconds = cpu_seconds(worker) - before, time.monotonic() - begun
    return {"idle_cpu_s_per_min": used / seconds * 60}


def memory(site: Site, sizes: Sizes) -> Numbers:
    """Proportional set size of all processes of a worker that has run some tasks."""
    ids = site.ask("publish", "2000")["ids"]
    with site.worker() as worker:
        site.ask("verify", *ids)
        site.ask("ready")
        time.sleep(1.0)
        return {"pss_mb": pss_megabytes(worker)}


def eta(site: Site, sizes: Sizes) -> Numbers:
    """Many tasks that are due in an hour: what they cost a running worker, and how fast tasks for now run beside them."""
    with site.worker() as worker:
        site.ask("verify", *site.ask("publish", "1000")["ids"])
        time.sleep(1.0)
        before = pss_megabytes(worker)
        published = site.ask("publish_later", str(sizes.scheduled), "3600")
        # A worker that takes them in needs its time for it: it has done so when its memory stands still.
        settled = _steady(lambda: pss_megabytes(worker))
        start_ms = site.ask("latency", "50")["start_ms"]
        already = site.counts()[0]
    total = sizes.drain(site) // 2
    ids = site.ask("publish", str(total))["ids"]
    with site.worker():
        rate = drain_rate(site, total, already=already)
        site.ask("verify", *ids[-5:])
    scale = 100_000 / sizes.scheduled
    return {
        "eta_mb": (settled - before) * scale,
        "eta_call_us": published["per_call_us"],
        "eta_start_p50_ms": statistics.median(start_ms),
        "eta_drain_per_s": rate,
    }


FIGURES: dict[str, tuple[Callable[[Site, Sizes], Numbers], ...]] = {
    "throughput": (throughput, sustained),
    "delay": (delay,),
    "latency": (latency,),
    "fairness": (fairness,),
    "idle": (idle,),
    "memory": (memory,),
    "eta": (eta,),
}
ONCE = {"eta"}
"""Takes minutes on Celery's side, and does not vary much: one round."""


def _wait(condition: Callable[[], bool], what: str, *, timeout_seconds: float = 180.0, every_seconds: float = 0.02) -> None:
    if not wait_until(condition, timeout_seconds=timeout_seconds, every_seconds=every_seconds):
        raise BenchError(f"The worker never {what} ({timeout_seconds:.0f} s).")


def _steady(read: Callable[[], float], *, timeout_seconds: float = 240.0) -> float:
    """The value once it has moved by less than half a megabyte in three seconds."""
    history = [read()]
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        time.sleep(1.0)
        history.append(read())
        if len(history) > 4 and max(history[-4:]) - min(history[-4:]) < 0.5:
            break
    return history[-1]


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
