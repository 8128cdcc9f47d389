"""What callers do, run in the interpreter of the side that is measured: `python -m bench.client COMMAND …` prints one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from . import workload

Answer = dict[str, Any]
PATIENCE_SECONDS = 120.0
AT_ONCE_SECONDS = 10.0
"""Calls back to back end after so long: some peers take 50 ms for each."""
LOOK_EVERY = 20
"""A producer looks at how many are waiting after so many calls."""

peer: Any = importlib.import_module(f".peers.{os.environ['BENCH_SIDE']}", __package__)


def sender(name: str) -> Callable[..., Any]:
    """What sends this task, and returns a handle."""
    if hasattr(peer, "many"):
        return lambda *arguments: peer.many(name, [arguments])[0]
    send: Callable[..., Any] = getattr(peer, name)
    return send


def send_many(name: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    if hasattr(peer, "many"):
        handles: list[Any] = peer.many(name, arguments)
        return handles
    send = getattr(peer, name)
    return [send(*some) for some in arguments]


def wait(handle: Any) -> Any:
    return peer.value(handle, PATIENCE_SECONDS)


def ready() -> Answer:
    """Returns when the worker has run tasks in both of its processes, or has had ample time to."""
    wait(sender("stamp")())
    seen: set[int] = set()
    deadline = time.monotonic() + 5
    while len(seen) < 2 and time.monotonic() < deadline and hasattr(peer, "pid"):
        seen.update(wait(handle) for handle in send_many("pid", [()] * 20))
    return {"pids": sorted(seen)}


def publish(count: str, warm_up: str = "0", name: str = "add") -> Answer:
    """Sends `add(2, 2)` in a plain loop. The sample of handles that it names is checked by `verify` afterwards."""
    arguments = (2, 2) if name == "add" else ()
    if int(warm_up):
        _first_call(name, arguments)
    for _ in range(int(warm_up)):
        sender(name)(*arguments)
    total = int(count)
    every = max(1, total // 100)
    sample: list[Any] = []
    if hasattr(peer, "many"):
        started = time.perf_counter()
        handles = peer.many(name, [arguments] * total)
        seconds = time.perf_counter() - started
        sample = handles[::every] + handles[-100:]
    else:
        send = getattr(peer, name)
        started = time.perf_counter()
        for number in range(total):
            handle = send(*arguments)
            if number % every == 0 or number >= total - 100:
                sample.append(handle)
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "per_call_us": seconds / total * 1e6,
        "sample": [peer.key(handle) for handle in sample] if hasattr(peer, "key") else [],
    }


def _first_call(name: str, arguments: tuple[Any, ...]) -> None:
    """Makes tables and queues on an empty server, which may take longer than a call is allowed to."""
    for _ in range(10):
        try:
            sender(name)(*arguments)
            return
        except Exception:
            time.sleep(1.0)


def fill(count: str, name: str = "add") -> Answer:
    """Sends so many by whatever way is fastest, for those who empty the queue. Names a sample, as `publish` does."""
    if not hasattr(peer, "fill"):
        return publish(count, "0", name)
    keys = peer.fill(name, (2, 2) if name == "add" else (), int(count))
    return {"sample": keys[:: max(1, len(keys) // 100)] + keys[-100:]}


def verify(*keys: str) -> Answer:
    """Every one of these results is there and right; else an error."""
    for key in keys:
        value = wait(peer.find(key))
        if value != 4:
            raise SystemExit(f"the result of {key} is {value!r}, not 4")
    return {"verified": len(keys)}


def produce(seconds: str, most: str) -> Answer:
    """Sends flat out for so long, while fewer than `most` messages of all producers together wait for their start."""
    send, most_waiting = sender("timed"), int(most)
    counters, count_sent = workload.counters, workload.count_sent
    sent = 0
    started = time.perf_counter()
    deadline = started + float(seconds)
    while time.perf_counter() < deadline:
        if sent % LOOK_EVERY == 0:
            while counters.waiting() > most_waiting and time.perf_counter() < deadline:
                time.sleep(0.001)
        count_sent()
        send(time.monotonic_ns())
        sent += 1
    return {"sent": sent, "seconds": time.perf_counter() - started}


def publish_later(count: str, seconds: str) -> Answer:
    """Sends tasks that are due only in so many seconds."""
    total, countdown = int(count), float(seconds)
    started = time.perf_counter()
    for _ in range(total):
        peer.later((2, 2), countdown=countdown)
    return {"seconds": time.perf_counter() - started, "per_call_us": (time.perf_counter() - started) / total * 1e6}


def latency(count: str) -> Answer:
    """One call at a time, with pauses between them in which the worker falls idle again; then one after another without pauses."""
    randomness = random.Random(7)
    stamp = sender("stamp")
    for _ in range(30):
        wait(stamp())
    start_ms, result_ms, call_us = [], [], []
    for _ in range(int(count)):
        time.sleep(randomness.uniform(0.003, 0.020))
        called = time.monotonic_ns()
        handle = stamp()
        sent = time.monotonic_ns()
        started = wait(handle)
        in_hand = time.monotonic_ns()
        start_ms.append((started - called) / 1e6)
        result_ms.append((in_hand - called) / 1e6)
        call_us.append((sent - called) / 1e3)
    at_once_start_ms, at_once_ms = [], []
    until = time.monotonic() + AT_ONCE_SECONDS
    for _ in range(5 * int(count)):  # they take little time, and vary more from call to call
        if time.monotonic() > until:
            break
        called = time.monotonic_ns()
        started = wait(stamp())
        at_once_start_ms.append((started - called) / 1e6)
        at_once_ms.append((time.monotonic_ns() - called) / 1e6)
    return {
        "start_ms": start_ms,
        "result_ms": result_ms,
        "call_us": call_us,
        "at_once_start_ms": at_once_start_ms,
        "at_once_ms": at_once_ms,
        "has_results": hasattr(peer, "find"),
    }


def fairness_idle() -> Answer:
    """A task of 1 s, then 40 short ones, to an idle worker: how long the unluckiest waits for its start."""
    for handle in send_many("stamp", [()] * 100):
        wait(handle)
    time.sleep(0.3)
    long = sender("nap")(1.0)
    short = []
    for _ in range(40):
        called = time.monotonic_ns()
        short.append((called, sender("stamp")()))
    waited = [(wait(handle) - called) / 1e6 for called, handle in short]
    wait(long)
    return {"worst_ms": max(waited)}


def fairness_load() -> Answer:
    """Fills the queue before a worker is there: short tasks, the long one, 40 short ones. The worker meets the long one in the middle of its stride."""
    send_many("stamp", [()] * 400)
    long = sender("nap")(1.0)
    return {"long": peer.key(long), "short": [peer.key(handle) for handle in send_many("stamp", [()] * 40)]}


def fairness_collect(long: str, *short: str) -> Answer:
    """How long after the long task's start the unluckiest of those behind it started."""
    begin = wait(peer.find(long))
    return {"worst_ms": max((wait(peer.find(key)) - begin) / 1e6 for key in short)}


def sizes() -> Answer:
    """How many bytes Celeriac stores for one message and one record of `add`; for the raw limit. Only where a worker has run."""
    import msgspec

    result = peer.add(2, 2)
    wait(result)
    task = peer.app.tasks["bench.add"]
    message = peer.app.producer.message("bench.add", (2, 2), {}, task=task, options={}, parent=None)
    record = peer.app.backend.fetch([result.id])[result.id]
    return {"message": _bytes_of(message), "record": len(msgspec.json.encode(record))}


def _bytes_of(message: Any) -> int:
    """As the engine stores it: RabbitMQ has Celery's format."""
    import msgspec

    if not os.environ["BENCH_BROKER"].startswith("amqp"):
        return len(msgspec.json.encode(message))
    from celeriac.engines import rabbitmq_wire as wire
    from celeriac.interop.celery import body_of, headers_of

    properties = wire.properties(
        headers_of(message), content_type="application/json", content_encoding="utf-8", priority=0, correlation_id=message.id
    )
    return len(properties) + len(body_of(message))


COMMANDS: dict[str, Callable[..., Answer]] = {
    command.__name__: command
    for command in (ready, publish, fill, verify, produce, publish_later, latency, fairness_idle, fairness_load, fairness_collect, sizes)
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
