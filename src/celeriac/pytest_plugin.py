"""pytest fixtures for programs that send tasks. Installed with Celeriac; nothing has to be imported.

    def test_signup(client, celeriac_worker):
        client.post("/signup", {...})
        celeriac_worker.assert_enqueued(send_welcome, args=(1,))
        celeriac_worker.run_all()
        assert mailbox == ["welcome"]

Override `celeriac_app` when the app under test is not the current one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from .app import Celeriac
    from .testing.clock import FakeClock
    from .worker.inline import InlineWorker


@pytest.fixture
def celeriac_app() -> Celeriac:
    """The app whose tasks are tested: the current one."""
    from .tasks.registry import find_current_app

    return cast("Celeriac", find_current_app())


@pytest.fixture
def celeriac_worker(celeriac_app: Celeriac) -> Iterator[InlineWorker]:
    """A worker in the test's own process: `run`, `run_all`, `advance`, `enqueued`, `assert_enqueued`, `assert_not_enqueued`."""
    from .worker.inline import InlineWorker

    with InlineWorker(celeriac_app) as worker:
        yield worker


@pytest.fixture
def celeriac_clock(celeriac_worker: InlineWorker) -> FakeClock:
    """The clock of `celeriac_worker`: it stands still until the test turns it."""
    return celeriac_worker.clock
