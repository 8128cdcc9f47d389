"""What is measured. Each function takes one measurement of one side on an empty broker and returns named numbers."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .processes import cpu_seconds, pss_megabytes, wait_until
from .sides import BenchError, Site, Workers

Numbers = dict[str, float]
WAITING_AT_MOST = 1000
"""In sustained operation: so many messages may wait before the producers pause."""
PRODUCERS = 2
IO_IDEAL_PER_S = 500 / 0.010
"""500 at once, of 10 ms each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of each measurement is done; see `FULL` and `QUICK`."""

    queue: dict[str, int] = field(default_factory=dict)
    """How many tasks a side is given for `throughput`, so that all are busy for some seconds."""
    queue_of_others: int
    sustained_seconds: float
    sustained_seconds_of_others: float
    delays: int
    latencies: int
    io_tasks: int
    io_tasks_of_others: int
    idle_seconds: float
    scheduled: int
    scheduled_of_others: int
    raw_rows: int

    def queue_of(self, site: Site) -> int:
        return self.queue.get(site.side.name, self.queue_of_others)


FULL = Sizes(
    queue={"celeriac": 120_000, "celery": 5_000, "huey": 20_000, "rq": 3_000, "procrastinate": 4_000},
    queue_of_others=8_000,
    sustained_seconds=60.0,
    sustained_seconds_of_others=15.0,
    delays=4_000,
    latencies=200,
    io_tasks=20_000,
    io_tasks_of_others=6_000,
    idle_seconds=15.0,
    scheduled=100_000,
    scheduled_of_others=20_000,
    raw_rows=200_000,
)
QUICK = Sizes(
    queue={"celeriac": 30_000, "celery": 2_000, "huey": 6_000, "rq": 1_000, "procrastinate": 1_500},
    queue_of_others=3_000,
    sustained_seconds=5.0,
    sustained_seconds_of_others=5.0,
    delays=1_000,
    latencies=100,
    io_tasks=20_000,
    io_tasks_of_others=3_000,
    idle_seconds=5.0,
    scheduled=10_000,
    scheduled_of_others=5_000,
    raw_rows=50_000,
)


def throughput(site: Site, sizes: Sizes) -> Numbers:
    """The queue is filled, then a worker drains it. The rate between 10 % and 98 % of it, when both processes are surely there."""
    total = sizes.queue_of(site)
    sample = site.ask("fill", str(total))["sample"]
    with site.worker() as workers:
        numbers = _drain(site, workers, total)
        site.ask("verify", *sample)
    return {
        "drain_per_s": numbers.per_s,
        "drain_worker_us": numbers.worker_us,
        "drain_server_us": numbers.server_us,
    }


@dataclass(frozen=True, slots=True)
class Drain:
    """How fast a queue ran empty, and what CPU time a task cost in the worker (all its processes) and in the servers."""

    per_s: float
    worker_us: float
    server_us: float
    worker_cores: float


def _drain(site: Site, workers: Workers, total: int, *, already: int = 0) -> Drain:
    """While a worker gets through `total` tasks; the counters stood at `already` before."""

    def done() -> int:
        return site.counts().started - already

    _come(done, total * 0.10, "began on its queue")
    first, begun, worker, server = done(), time.monotonic(), workers.measured(cpu_seconds), site.server_cpu_seconds()
    _come(done, total * 0.98, "came to the end of its queue")
    tasks, seconds = done() - first, time.monotonic() - begun
    worker, server = workers.measured(cpu_seconds) - worker, site.server_cpu_seconds() - server
    _come(done, total, "ran the last task")
    return Drain(tasks / seconds, worker / tasks * 1e6, server / tasks * 1e6, worker / seconds)


def sustained(site: Site, sizes: Sizes) -> Numbers:
    """Two producers send flat out while a worker works, for a minute; they pause while 1,000 wait."""
    seconds = sizes.sustained_seconds_of_others if site.side.packages else sizes.sustained_seconds
    with site.worker() as workers, contextlib.ExitStack() as stack:
        site.ask("ready")
        asked = ("produce", str(seconds + 3), str(WAITING_AT_MOST))
        answers = [stack.enter_context(site.asking(*asked)) for _ in range(PRODUCERS)]
        _wait(lambda: site.counts().started > 500, "was sent anything")
        before, begun = site.counts(waited=True), time.monotonic()
        worker, server = workers.measured(cpu_seconds), site.server_cpu_seconds()
        numbers = site.server_numbers()
        while time.monotonic() - begun < seconds:
            time.sleep(1.0)
            for name, number in site.server_numbers().items():
                numbers[name] = max(numbers[name], number)
        after, lasted = site.counts(waited=True), time.monotonic() - begun
        worker, server = workers.measured(cpu_seconds) - worker, site.server_cpu_seconds() - server
        for answer in answers:
            answer(60.0)
        _wait(lambda: site.counts().started >= site.counts().sent, "ran what had been sent")
    return {
        "sustained_per_s": (after.started - before.started) / lasted,
        "sustained_start_p50_ms": after.waited_ms(before, 50),
        "sustained_start_p99_ms": after.waited_ms(before, 99),
        "sustained_worker_cores": worker / lasted,
        "sustained_server_cores": server / lasted,
        "sustained_seconds": lasted,
        **{f"sustained_{name}": number for name, number in numbers.items()},
    }


def delay(site: Site, sizes: Sizes) -> Numbers:
    """`.delay()` in a plain loop with no worker beside it: the mean of the loop."""
    return {"delay_us": site.ask("publish", str(sizes.delays), "300")["per_call_us"]}


def latency(site: Site, sizes: Sizes) -> Numbers:
    """One call at a time to an idle worker."""
    with site.worker():
        site.ask("ready")
        answer = site.ask("latency", str(sizes.latencies))
    numbers = {
        "start_p50_ms": statistics.median(answer["start_ms"]),
        "start_p99_ms": _percentile(answer["start_ms"], 99),
        "result_p50_ms": statistics.median(answer["result_ms"]),
        "result_p99_ms": _percentile(answer["result_ms"], 99),
        "at_once_start_p50_ms": statistics.median(answer["at_once_start_ms"]),
        "at_once_start_p99_ms": _percentile(answer["at_once_start_ms"], 99),
        "at_once_p50_ms": statistics.median(answer["at_once_ms"]),
        "at_once_p99_ms": _percentile(answer["at_once_ms"], 99),
        "call_p50_us": statistics.median(answer["call_us"]),
    }
    if not answer["has_results"]:
        return {name: number for name, number in numbers.items() if "start" in name or "call" in name}
    return numbers


def io(site: Site, sizes: Sizes) -> Numbers:
    """Coroutines that wait 10 ms each, in one process, 500 at once."""
    total = sizes.io_tasks_of_others if site.side.packages else sizes.io_tasks
    sample = site.ask("fill", str(total), "doze")["sample"]
    with site.worker(io=True) as workers:
        numbers = _drain(site, workers, total)
        site.ask("verify", *sample)
    return {
        "io_per_s": numbers.per_s,
        "io_share_of_ideal": numbers.per_s / IO_IDEAL_PER_S * 100,
        "io_cores": numbers.worker_cores * 100,
        "io_worker_us": numbers.worker_us,
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
    with site.worker() as workers:
        site.ask("ready")
        time.sleep(2.0)
        before, begun = workers.measured(cpu_seconds), time.monotonic()
        time.sleep(sizes.idle_seconds)
        used, seconds = workers.measured(cpu_seconds) - before, time.monotonic() - begun
    return {"idle_cpu_s_per_min": used / seconds * 60}


def memory(site: Site, sizes: Sizes) -> Numbers:
    """Proportional set size of all processes of a worker that has run some tasks."""
    sample = site.ask("publish", "2000")["sample"]
    with site.worker() as workers:
        site.ask("verify", *sample)
        site.ask("ready")
        time.sleep(1.0)
        return {"pss_mb": workers.measured(pss_megabytes)}


def eta(site: Site, sizes: Sizes) -> Numbers:
    """Many tasks that are due in an hour: what they cost a running worker, and how fast tasks for now run beside them."""
    scheduled = sizes.scheduled_of_others if site.side.packages else sizes.scheduled
    with site.worker() as workers:
        site.ask("verify", *site.ask("publish", "1000")["sample"])
        time.sleep(1.0)
        before = workers.measured(pss_megabytes)
        published = site.ask("publish_later", str(scheduled), "3600")
        # A worker that takes them in needs its time for it: it has done so when its memory stands still.
        settled = _steady(lambda: workers.measured(pss_megabytes))
        start_ms = site.ask("latency", "50")["start_ms"]
        already = site.counts().started
    total = sizes.queue_of(site) // 2
    sample = site.ask("fill", str(total))["sample"]
    with site.worker() as workers:
        drained = _drain(site, workers, total, already=already)
        site.ask("verify", *sample[-5:])
    scale = 100_000 / scheduled
    return {
        "eta_mb": (settled - before) * scale,
        "eta_call_us": published["per_call_us"],
        "eta_start_p50_ms": statistics.median(start_ms),
        "eta_drain_per_s": drained.per_s,
    }


@dataclass(frozen=True, slots=True)
class Figure:
    """One value of `--only`."""

    measure: Callable[[Site, Sizes], Numbers]
    about: str
    fits: Callable[[Site], bool] = lambda site: True
    once: bool = False
    """It takes minutes, and does not vary much: one round."""


def _is_main(site: Site) -> bool:
    """Celeriac and the one peer that it is measured by: the others would take a minute each."""
    return site.side.name in ("celeriac", "celery", "procrastinate")


def _sends_later(site: Site) -> bool:
    return site.side.later


FIGURES: dict[str, Figure] = {
    "throughput": Figure(throughput, "no-op tasks a second, full queue; CPU time of one, in worker and server"),
    "sustained": Figure(
        sustained, "two producers and a worker together for a minute: rate, p99 to the start, server CPU, dead tuples", _is_main
    ),
    "delay": Figure(delay, "µs of one .delay()"),
    "latency": Figure(latency, "from the call to the start and to the result in hand, paced and back to back"),
    "io": Figure(io, "coroutines of 10 ms in one process, 500 at once", lambda site: bool(site.side.io_worker)),
    "fairness": Figure(fairness, "how long short tasks wait behind a long one", _sends_later),
    "idle": Figure(idle, "CPU of a worker with nothing to do", _is_main),
    "memory": Figure(memory, "memory of a worker", _is_main),
    "eta": Figure(eta, "100,000 tasks due in an hour: memory of a worker, speed beside them", _sends_later, once=True),
}


def _come(read: Callable[[], int], wanted: float, what: str, *, patience_seconds: float = 60.0) -> None:
    """Waits until the number is there, as long as it moves."""
    last, moved = read(), time.monotonic()
    while last < wanted:
        time.sleep(0.02)
        now = read()
        if now != last:
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > patience_seconds:
            raise BenchError(f"The worker never {what}: {now:,} of {wanted:,.0f}, and nothing moved for {patience_seconds:.0f} s.")


def _wait(condition: Callable[[], bool], what: str, *, timeout_seconds: float = 60.0, every_seconds: float = 0.02) -> None:
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
