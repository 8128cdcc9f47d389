"""What receivers of signals may count on, in a real worker."""

from __future__ import annotations

import signal
import textwrap

import pytest

from tests.support.fixtures import MakeProject
from tests.support.workers import until


def test_celeryd_init_may_change_settings_for_one_worker(make_project: MakeProject) -> None:
    project = make_project()
    (project.directory / "special.py").write_text(
        textwrap.dedent(
            """
            from celeriac.signals import celeryd_init
            from proj import app

            @celeryd_init.connect
            def special(sender, conf, **kwargs):
                if sender.startswith("special@"):
                    conf.worker_concurrency = 3
            """
        )
    )
    worker = project.worker("-I", "special", "-n", "special@%h")
    until(lambda: project.broker.nodes() and project.broker.nodes()[0].concurrency == 3, "the worker says that it runs three at once")
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_nothing_new_is_taken_any_more_when_worker_shutting_down_is_sent(make_project: MakeProject, pool: str) -> None:
    project = make_project()
    (project.directory / "told.py").write_text(
        textwrap.dedent(
            """
            from celeriac.signals import worker_shutting_down
            from proj import wait_for_gate, write

            @worker_shutting_down.connect
            def tell(**kwargs):
                write("told", "receiver")
                wait_for_gate("receiver")
            """
        )
    )
    worker = project.worker("-I", "told", "-P", pool, "-c", "1")
    running = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    worker.signal(signal.SIGTERM)
    until(lambda: project.journal("told"), "the receiver is told")
    waiting = project.tasks.work.delay("waiting")
    project.open_gate("go")
    project.wait_state(running.id, "SUCCESS")
    project.open_gate("receiver")
    assert worker.wait() == 0
    assert project.broker.find([waiting.id])[waiting.id].state == "ready" and not project.starts("waiting")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_async_tasks_run_in_greenlet_pools_too(make_project: MakeProject, pool: str) -> None:
    pytest.importorskip(pool)
    project = make_project()
    (project.directory / "coroutines.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            from proj import app

            @app.task(name="pause")
            async def pause(number):
                await asyncio.sleep(0.05)
                return number
            """
        )
    )
    worker = project.worker("-I", "coroutines", "-P", pool, "-c", "4")
    results = [project.tasks.app.send_task("pause", (number,)) for number in range(6)]
    assert [result.get(timeout=30) for result in results] == list(range(6))
    assert worker.stop() == 0
