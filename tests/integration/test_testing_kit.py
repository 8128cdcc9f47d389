"""The testing kit, used as a user's own tests would use it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac import Celeriac
from celeriac.core.errors import CeleriacError
from celeriac.worker.inline import InlineWorker

pytest_plugins = ["pytester"]


class Shop:
    """An app and what its tasks did."""

    def __init__(self) -> None:
        self.app = app = Celeriac("shop", broker="sqlite:////nowhere/at/all.db")
        self.sent: list[int] = []
        self.tries = 0

        @app.task(name="welcome")
        def welcome(user: int) -> str:
            self.sent.append(user)
            return f"welcome {user}"

        @app.task(name="flaky", bind=True, max_retries=5)
        def flaky(task, fails: int) -> int:
            self.tries += 1
            if self.tries <= fails:
                raise task.retry(countdown=3600)
            return self.tries

        @app.task(name="signup")
        def signup(user: int) -> None:
            welcome.apply_async((user,), countdown=600)

        @app.task(name="forever")
        def forever() -> None:
            forever.delay()

        self.welcome, self.flaky, self.signup, self.forever = welcome, flaky, signup, forever


@pytest.fixture
def shop():
    return Shop()


@pytest.fixture
def celeriac_app(shop):
    return shop.app


def test_what_is_sent_is_seen_and_runs(shop: Shop, celeriac_worker: InlineWorker):
    result = shop.welcome.delay(7)
    celeriac_worker.assert_enqueued(shop.welcome, args=(7,), count=1)
    celeriac_worker.assert_not_enqueued(shop.welcome, args=(8,))
    assert shop.sent == []
    assert celeriac_worker.run() == 1
    assert shop.sent == [7]
    assert result.get(timeout=1) == "welcome 7"
    celeriac_worker.assert_not_enqueued(shop.welcome)


def test_the_clock_is_the_tests(shop: Shop, celeriac_worker: InlineWorker):
    shop.welcome.apply_async((1,), countdown=3600)
    celeriac_worker.assert_enqueued("welcome", countdown=3600)
    assert celeriac_worker.run() == 0
    celeriac_worker.advance(timedelta(minutes=59))
    assert celeriac_worker.run() == 0
    celeriac_worker.advance(60)
    assert celeriac_worker.run() == 1


def test_it_jumps_over_retries_and_etas(shop: Shop, celeriac_worker: InlineWorker):
    result = shop.flaky.delay(3)
    shop.signup.delay(5)
    before = celeriac_worker.clock.time()
    assert celeriac_worker.run_all() == 6
    assert result.get(timeout=1) == 4
    assert shop.sent == [5]
    assert celeriac_worker.clock.time() - before == pytest.approx(3 * 3600, abs=1)


def test_tasks_that_send_each_other_for_ever_are_an_error(shop: Shop, celeriac_worker: InlineWorker):
    shop.forever.delay()
    with pytest.raises(CeleriacError, match="for ever"):
        celeriac_worker.run(most=50)


def test_a_failed_assertion_shows_what_waits(shop: Shop, celeriac_worker: InlineWorker):
    shop.welcome.delay(3)
    with pytest.raises(AssertionError, match=r"welcome\(4, …\).*\n.*welcome\(3,\)"):
        celeriac_worker.assert_enqueued(shop.welcome, args=(4,))


def test_afterwards_the_app_has_its_own_engine_again(shop: Shop):
    with InlineWorker(shop.app):
        assert shop.app.broker.capabilities.engine == "memory"
    assert shop.app.settings.broker_url.startswith("sqlite:")


def test_the_fixtures_come_with_the_installation(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        from celeriac import Celeriac

        app = Celeriac("proj")

        @app.task
        def add(a, b):
            return a + b

        def test_add(celeriac_worker, celeriac_clock):
            result = add.apply_async((1, 2), countdown=60)
            celeriac_clock.advance(60)
            assert celeriac_worker.run() == 1
            assert result.get(timeout=1) == 3
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
