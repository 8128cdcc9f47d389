"""P8 with a server on a network: calling never hangs, whatever the network and the server do. (Under load, with workers: test_network.py.)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from celeriac.exceptions import EnqueueError
from tests.support.awake import AwakeClock
from tests.support.engines import SERVERS, Home, Homes, ServerHome, every_engine, wait_for
from tests.support.fixtures import MakeProject
from tests.support.workers import PATIENCE_SECONDS, Project, until

pytestmark = [pytest.mark.promise(8), pytest.mark.hasty, every_engine(always=("redis", "postgresql", "rabbitmq"), engines=SERVERS)]

LIMIT_SECONDS = 1.0
"""broker_publish_timeout by default."""
SLACK_SECONDS = 1.0
"""What a busy machine may add."""
CALLS = 12


@pytest.fixture
def home(proxied_homes: Homes, engine: str) -> Iterator[Home]:
    """Undisturbed again afterwards."""
    home = proxied_homes[engine]
    yield home
    assert isinstance(home.proxies, list)  # type: ignore[attr-defined]
    for proxy in home.proxies:  # type: ignore[attr-defined]
        proxy.cut("RST")
        proxy.flow()
        proxy.swallows = False
        proxy.accept()


def warm(project: Project) -> None:
    """A connection is there, and all that the engine makes for itself at the first use."""
    wait_for(lambda: project.broker.depth(["celery"]))
    works(project)


def refused(project: Project) -> list[float]:
    """How long each of some calls took that all had to raise."""
    took, took_awake = [], []
    with AwakeClock() as awake:
        for _ in range(CALLS):
            began, awake_began = time.monotonic(), awake.seconds()
            with pytest.raises(EnqueueError) as caught:
                project.tasks.add.delay(1, 2)
            took.append(time.monotonic() - began)
            took_awake.append(awake.seconds() - awake_began)
            assert caught.value.task_name == "proj.add" and caught.value.task_id
            assert "proj.add" in str(caught.value)
    assert max(took_awake) < LIMIT_SECONDS + SLACK_SECONDS, (took, took_awake)
    assert sorted(took_awake)[CALLS // 2] < 0.1, f"after some failures calls fail at once: {took}, {took_awake}"
    return took


def works(project: Project) -> None:
    """Within the time of a probe or two."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            project.tasks.add.delay(1, 2)
            return
        except EnqueueError:
            assert time.monotonic() < deadline, "calls work again"
            time.sleep(0.05)


@pytest.mark.parametrize("known", [True, False], ids=["that was there", "from the start"])
def test_p8_a_dead_server_is_an_error(project: Project, home: ServerHome, known: bool) -> None:
    if known:
        warm(project)
    for proxy in home.proxies:
        proxy.refuse()
        proxy.cut("RST")
    refused(project)
    for proxy in home.proxies:
        proxy.accept()
    works(project)


@pytest.mark.parametrize("known", [True, False], ids=["that was there", "from the start"])
def test_p8_a_black_hole_is_an_error_within_a_second(project: Project, home: ServerHome, known: bool) -> None:
    if known:
        warm(project)
    for proxy in home.proxies:
        proxy.swallow()
    took = refused(project)
    assert max(took) > LIMIT_SECONDS / 2, "it did try for a while"
    for proxy in home.proxies:
        proxy.remember()
    works(project)


def test_p8_an_error_says_whether_the_task_may_have_arrived(project: Project, home: ServerHome) -> None:
    warm(project)
    for proxy in home.proxies:
        proxy.swallow()
    with pytest.raises(EnqueueError, match="may or may not be in its queue") as caught:
        project.tasks.add.delay(1, 2)
    assert caught.value.unsure
    for proxy in home.proxies:
        proxy.refuse()
        proxy.cut("RST")
        proxy.remember()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with pytest.raises(EnqueueError) as caught:
            project.tasks.add.delay(1, 2)
        if "refused" in str(caught.value):
            break
        assert time.monotonic() < deadline, caught.value
    assert not caught.value.unsure
    assert "in no queue" in str(caught.value)


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_p8_a_connection_that_broke_meanwhile_is_nothing_a_caller_sees(project: Project, home: ServerHome, how: str) -> None:
    warm(project)
    for _ in range(5):
        assert sum(proxy.cut(how) for proxy in home.proxies) >= 1  # type: ignore[arg-type]
        project.tasks.add.delay(1, 1)


def test_p8_a_coroutine_that_calls_into_a_black_hole_never_hangs_its_loop(project: Project, home: ServerHome) -> None:
    warm(project)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        with AwakeClock() as awake:
            with pytest.raises(EnqueueError):
                await project.tasks.add.adelay(1, 2)
            assert awake.seconds() < LIMIT_SECONDS + SLACK_SECONDS
        ticking.cancel()

    for proxy in home.proxies:
        proxy.swallow()
    asyncio.run(main())
    assert ticks > 10, "the loop went on while the call waited"


def test_p8_a_program_that_calls_can_end_while_the_server_is_silent(project: Project, home: ServerHome) -> None:
    """No thread, connection or exit hook keeps it."""
    for proxy in home.proxies:
        proxy.stall()
    program = project.program("import proj\ntry:\n    proj.add.delay(1, 2)\nexcept Exception as error:\n    print(type(error).__name__)")
    assert program.stdout is not None and program.stdout.read() == b"EnqueueError\n"
    assert program.wait(PATIENCE_SECONDS) == 0


def test_p8_calling_does_not_touch_a_result_backend_that_is_silent(
    make_project: MakeProject, proxied_homes: Homes, home: ServerHome, engine: str
) -> None:
    """With only the results away, a call returns: nothing of it needs them."""
    results = proxied_homes["redis" if engine != "redis" else "postgresql"]
    settings = results.settings(make_project().directory)
    project = make_project(result_backend=settings["broker_url"], result_backend_transport_options=settings["broker_transport_options"])
    warm(project)
    for proxy in results.proxies:  # type: ignore[attr-defined]
        proxy.swallow()
    try:
        with AwakeClock() as awake:
            for _ in range(20):
                project.tasks.add.delay(1, 2)
            assert awake.seconds() < LIMIT_SECONDS + SLACK_SECONDS
    finally:
        for proxy in results.proxies:  # type: ignore[attr-defined]
            proxy.remember()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_p8_a_worker_with_nothing_in_hand_does_not_wait_for_its_server_to_stop(
    make_project: MakeProject, home: ServerHome, pool: str
) -> None:
    project = make_project(worker_soft_shutdown_timeout=600)
    warm(project)
    project.broker.purge(["celery"])  # an outcome that is just being settled would be something in hand
    worker = project.worker("-c", "2", "-P", pool)
    for proxy in home.proxies:
        proxy.refuse()
        proxy.cut("RST")
    until(lambda: "The engine is in trouble" in worker.log(), "the worker has noticed")
    worker.may_complain = True
    assert worker.stop() == 0
