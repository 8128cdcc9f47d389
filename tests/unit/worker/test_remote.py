"""Remote control, the worker's side: a real supervisor whose processes are dummies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import structs

from celeriac.contracts.mailbox import Letter
from celeriac.core.message import Holder, Revocation
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker import remote
from celeriac.worker.options import WorkerOptions
from celeriac.worker.process import Doom
from celeriac.worker.remote import COMMANDS, answer
from celeriac.worker.slots import Page
from celeriac.worker.supervisor import EXIT_LEASE_LOST, Supervisor

from .lab import Lab, MakeLab


class Dummy:
    """A process as its supervisor sees it, without the process."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self.plan = structs.replace(supervisor.plan, process=number)
        self.page = Page.create(1)
        self.number, self.pid = number, 5000 + number
        self.soft_signalled = self.freed = self.exit_code = None
        self.next_soft_signal = 0.0
        self.doom: Doom | None = None
        self.draining = self.interrupted = self.closed = False
        self.killed: list[int] = []
        self.told: list[dict[str, Any]] = []

    def ended(self) -> bool:
        return self.exit_code is not None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.killed.append(signum)
        self.exit_code = self.exit_code or -signum

    def end_task(self, task_id: str, error: str, *arguments: Any, signum: int = signal.SIGKILL) -> None:
        self.doom = Doom(task_id, signum, {"exc_type": error, "exc_message": list(arguments), "exc_module": "celery.exceptions"})
        self.kill(signum)

    def tell(self, command: dict[str, Any]) -> None:
        self.told.append(command)

    def drain(self) -> None:
        self.draining = True
        self.page.stop()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self.page.close()

    def rss_bytes(self) -> int:
        return 3 * 1024 * 1024


MakeSupervisor = Callable[..., Supervisor]


@pytest.fixture
def make_supervisor() -> Iterator[MakeSupervisor]:
    made: list[Supervisor] = []

    def make(lab: Lab, *, processes: int = 2, **options: Any) -> Supervisor:
        supervisor = Supervisor(lab.app, WorkerOptions(**{"hostname": "w@h", "concurrency": processes, **options}))
        supervisor.lease.begin()
        supervisor.plan = structs.replace(supervisor.plan, node=supervisor.lease.node.id)
        for number in range(1, processes + 1):
            supervisor.processes[number] = Dummy(supervisor, number)  # type: ignore[assignment]
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        for process in supervisor.processes.values():
            process.close()


@pytest.fixture
def supervisor(lab: Lab, make_supervisor: MakeSupervisor) -> Supervisor:
    @lab.app.task(name="shop.work", rate_limit="10/m")
    def work(*args: Any) -> None: ...

    return make_supervisor(lab)


def ask(supervisor: Supervisor, method: str, **arguments: Any) -> Any:
    """The reply to a command."""
    answer(supervisor, Letter(method=method, arguments=arguments, reply_to="me", ticket="t"))
    letters = supervisor.broker.collect("me")
    if not letters:
        return None
    (letter,) = letters
    assert (letter.method, letter.ticket, letter.arguments["node"]) == ("reply", "t", "w@h")
    return letter.arguments["reply"]


def take(lab: Lab, supervisor: Supervisor, *args: Any, process: int = 1, runs: bool = False, **options: Any) -> str:
    """A task that a process of this worker holds, and maybe runs; its id."""
    message = lab.publish(lab.app.tasks["shop.work"], *args, **options)
    (delivery,) = lab.engine.reserve(["celery"], limit=1, holder=Holder(supervisor.lease.node.id, process))
    assert delivery.id == message.id
    page = supervisor.processes[process].page
    if runs:
        page.start(0, message.id, 0, 1.0, 0.0, 0.0)
    elif not page.batch():
        page.begin_batch(2)
    return message.id


# -- questions --------------------------------------------------------------------------------------------------------


def test_ping(supervisor: Supervisor) -> None:
    assert ask(supervisor, "ping") == {"ok": "pong"}


def test_whoever_does_not_ask_for_an_answer_gets_none(supervisor: Supervisor) -> None:
    answer(supervisor, Letter(method="ping"))


def test_an_unknown_command_is_an_error_in_the_reply(supervisor: Supervisor) -> None:
    assert ask(supervisor, "dance") == {"error": "KeyError('dance')"}


@pytest.mark.parametrize("method", sorted(COMMANDS))
def test_arguments_that_no_command_takes_are_an_error_in_the_reply(supervisor: Supervisor, method: str) -> None:
    reply = ask(supervisor, method, nonsense=[1])
    if reply is not None and not (isinstance(reply, dict) and "ok" in reply):
        assert "TypeError" in reply["error"]


def test_an_answer_that_cannot_be_sent_is_no_error_of_the_worker(lab: Lab, supervisor: Supervisor) -> None:
    supervisor.broker = FaultyEngine(lab.engine, fail_at=1, verbs=["post"])
    answer(supervisor, Letter(method="ping", reply_to="me"))
    assert lab.engine.collect("me") == []


def test_active_and_reserved(lab: Lab, supervisor: Supervisor) -> None:
    runs, waits = take(lab, supervisor, 1, runs=True), take(lab, supervisor, "two", process=2)
    (active,) = ask(supervisor, "active")
    assert (active["id"], active["name"], active["args"], active["worker_pid"]) == (runs, "shop.work", [1], 5001)
    (reserved,) = ask(supervisor, "reserved")
    assert (reserved["id"], reserved["args"], reserved["time_start"]) == (waits, ["two"], None)
    assert ask(supervisor, "query_task", ids=[runs, waits, "other"]).keys() == {runs, waits}
    assert ask(supervisor, "query_task", ids=runs)[runs][0] == "active"


def test_arguments_that_json_has_no_word_for_are_shown(lab: Lab, supervisor: Supervisor) -> None:
    from datetime import UTC, datetime

    take(lab, supervisor, datetime(2030, 1, 1, tzinfo=UTC), runs=True)
    assert "2030" in str(ask(supervisor, "active")[0]["args"])


def test_scheduled(lab: Lab, supervisor: Supervisor) -> None:
    message = lab.publish(lab.app.tasks["shop.work"], countdown=60)
    (found,) = ask(supervisor, "scheduled")
    assert found["request"]["id"] == message.id and found["eta"].startswith("2023-11-14T22:14:20")


def test_revoked(lab: Lab, supervisor: Supervisor) -> None:
    lab.engine.revoke([Revocation(id="later")])
    assert ask(supervisor, "revoked") == ["later"]


def test_registered(supervisor: Supervisor) -> None:
    assert "shop.work [rate_limit=10/m]" in ask(supervisor, "registered")
    assert any(name.startswith("shop.work [name=shop.work") for name in ask(supervisor, "registered", taskinfoitems=["name"]))


@pytest.mark.parametrize(
    "method", ["clock", "stats", "active_queues", "conf", "report", "memsample", "heartbeat", "enable_events", "disable_events"]
)
def test_other_questions_have_an_answer_that_can_travel(supervisor: Supervisor, method: str) -> None:
    assert "error" not in (ask(supervisor, method) or {})


def test_stats(supervisor: Supervisor) -> None:
    supervisor.processes[1].page.count(5)
    stats = ask(supervisor, "stats")
    assert (stats["total"], stats["pool"]["max-concurrency"], stats["pool"]["processes"]) == ({"all tasks": 5}, 2, [5001, 5002])


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("SIGTERM", signal.SIGKILL), ("KILL", signal.SIGKILL), ("SIGUSR1", signal.SIGKILL), ("SIGABRT", signal.SIGABRT), (9, signal.SIGKILL),
        ("nonsense", signal.SIGKILL), ("_DFL", signal.SIGKILL), ("SIGSTOP", signal.SIGKILL),
    ],
)  # fmt: skip
def test_terminate_ends_the_process_that_runs_the_task(lab: Lab, supervisor: Supervisor, given: Any, sent: int) -> None:
    task_id, other = take(lab, supervisor, runs=True), take(lab, supervisor, process=2, runs=True)
    assert ask(supervisor, "terminate", task_id=task_id, signal=given) == {"ok": f"terminate: {task_id}"}
    process: Any = supervisor.processes[1]
    assert process.killed == [sent] and process.doom.task_id == task_id and other
    assert supervisor.processes[2].killed == []  # type: ignore[attr-defined]


def test_terminate_ends_what_is_taken_and_not_begun(lab: Lab, supervisor: Supervisor) -> None:
    runs, waits = take(lab, supervisor), take(lab, supervisor)
    page = supervisor.processes[1].page
    page.start(0, runs, 0, 1.0, 0.0, 0.0)
    lab.engine.revoke([Revocation(id=waits, terminate=True)])
    ask(supervisor, "terminate", task_id=[waits])
    assert (lab.where(runs), lab.where(waits)) == ("leased", None)
    harvest = page.harvest(page.command()[0])
    assert harvest is not None and harvest.kept == 0


def test_terminate_of_what_is_not_here(supervisor: Supervisor) -> None:
    assert ask(supervisor, "terminate", task_id="other") == {"ok": "terminate: tasks unknown"}


def test_terminate_is_told_to_a_process_of_many_tasks(lab: Lab, make_supervisor: MakeSupervisor) -> None:
    supervisor = make_supervisor(lab, pool="threads", processes=1)
    supervisor.processes[1].page.start(0, "task", 0, 1.0, 0.0, 0.0)
    ask(supervisor, "terminate", task_id="task")
    assert supervisor.processes[1].told == [{"cancel": "task"}]  # type: ignore[attr-defined]


def test_rate_limit(lab: Lab, supervisor: Supervisor) -> None:
    assert ask(supervisor, "rate_limit", task_name="shop.work", rate_limit="5/m") == {"ok": "new rate limit set successfully"}
    assert lab.app.tasks["shop.work"].rate_limit == "5/m" and supervisor.plan.rate_limits == {"shop.work": "5/m"}
    assert all(process.draining for process in supervisor.processes.values())
    assert ask(supervisor, "rate_limit", task_name="shop.work", rate_limit=0) == {"ok": "rate limit disabled successfully"}
    assert ask(supervisor, "rate_limit", task_name="other", rate_limit=1) == {"error": "unknown task"}
    assert "Invalid rate limit" in ask(supervisor, "rate_limit", task_name="shop.work", rate_limit="fast")["error"]


def test_time_limit(supervisor: Supervisor) -> None:
    assert ask(supervisor, "time_limit", task_name="shop.work", soft=5, hard=10) == {"ok": "time limits set successfully"}
    assert supervisor.plan.task_limits == {"shop.work": (10, 5)}
    assert ask(supervisor, "time_limit", task_name="other", hard=10) == {"error": "unknown task"}


@pytest.mark.parametrize("limits", [{"hard": "ten"}, {"hard": -1}, {"soft": 20, "hard": 10}, {"soft": [1]}])
def test_time_limits_that_make_no_sense_change_nothing(supervisor: Supervisor, limits: dict[str, Any]) -> None:
    assert "error" in ask(supervisor, "time_limit", task_name="shop.work", **limits)
    assert supervisor.plan.task_limits == {} and not supervisor.processes[1].draining


def test_pools_grow_and_shrink(supervisor: Supervisor) -> None:
    assert ask(supervisor, "pool_grow", n=2) == {"ok": "pool will grow"} and supervisor.target == 4
    assert ask(supervisor, "pool_shrink", n=3) == {"ok": "pool will shrink"} and supervisor.target == 1
    assert [process.draining for process in supervisor.processes.values()] == [False, True]
    ask(supervisor, "pool_shrink", n=100)
    assert supervisor.target == 0
    assert "error" in ask(supervisor, "pool_grow", n="many") and supervisor.target == 0


def test_a_worker_that_scales_by_itself_is_told_its_bounds(lab: Lab, make_supervisor: MakeSupervisor) -> None:
    supervisor = make_supervisor(lab, autoscale=(5, 2))
    assert "error" in ask(supervisor, "pool_grow") and "error" in ask(supervisor, "pool_shrink")
    assert ask(supervisor, "autoscale", max=3, min=1) == {"ok": "autoscale now max=3 min=1"}
    assert supervisor.options.autoscale == (3, 1)
    for wrong in ({"max": 1, "min": 3}, {"max": 0}, {"min": -1}, {"max": "many"}):
        assert "error" in ask(supervisor, "autoscale", **wrong)
    assert supervisor.options.autoscale == (3, 1)


def test_autoscale_without_autoscaling(supervisor: Supervisor) -> None:
    assert ask(supervisor, "autoscale", max=3) == {"error": "ValueError('Autoscale not enabled')"}


def test_consumers(lab: Lab, supervisor: Supervisor) -> None:
    assert ask(supervisor, "add_consumer", queue="celery") == {"ok": "already consuming from 'celery'"}
    assert ask(supervisor, "add_consumer", queue="mail") == {"ok": "add consumer mail"}
    assert [queue["name"] for queue in ask(supervisor, "active_queues")] == ["celery", "mail"]
    assert [node.queues for node in lab.engine.nodes() if node.id == supervisor.lease.node.id] == [["celery", "mail"]]
    assert ask(supervisor, "cancel_consumer", queue="celery") == {"ok": "no longer consuming from celery"}
    assert supervisor.plan.queues == ["mail"] and supervisor.processes[1].draining


def test_pool_restart(supervisor: Supervisor) -> None:
    assert ask(supervisor, "pool_restart", modules=["x"], reload=True) == {"ok": "reload started"}
    assert all(process.draining for process in supervisor.processes.values())


def test_shutdown_has_no_answer(supervisor: Supervisor) -> None:
    assert ask(supervisor, "shutdown") is None
    assert not supervisor._stopped() and all(process.draining for process in supervisor.processes.values())


def test_remote_control_may_be_switched_off_but_not_the_engines_own_letter(make_lab: MakeLab, make_supervisor: MakeSupervisor) -> None:
    lab = make_lab(worker_enable_remote_control=False)
    supervisor = make_supervisor(lab, processes=1)
    supervisor.processes[1].page.start(0, "task", 0, 1.0, 0.0, 0.0)
    node = supervisor.lease.node.id
    supervisor._stops = 1
    lab.engine.post([node], Letter(method="ping", reply_to="me"))
    lab.engine.post([node], Letter(method="terminate", arguments={"task_id": "task", "signal": "SIGTERM"}))
    process = supervisor.processes[1]
    supervisor._tick()
    assert lab.engine.collect("me") == [] and process.doom is not None


# -- the supervisor itself --------------------------------------------------------------------------------------------


def test_processes_that_have_lost_the_lease_together_begin_again_once(lab: Lab, supervisor: Supervisor) -> None:
    before = supervisor.lease.node.id
    dummies: Any = list(supervisor.processes.values())
    for dummy in dummies:
        dummy.exit_code = EXIT_LEASE_LOST
    lab.engine.unregister(before)
    supervisor._bury_the_dead()
    assert supervisor.processes == {} and supervisor.unrecovered == [] and all(dummy.closed for dummy in dummies)
    assert supervisor.lease.node.id != before == supervisor.processes.get(0, before)


def test_a_process_that_cannot_be_started_is_tried_again(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("celeriac.worker.supervisor.Process", refuse)
    monkeypatch.setattr("celeriac.worker.supervisor.RESTART_PAUSE_SECONDS", 1000.0)
    supervisor.target = 3
    supervisor._start_missing()
    supervisor._start_missing()
    assert len(supervisor.processes) == 2 and caplog.text.count("cannot be started") == 1


def test_a_process_that_came_after_the_word_to_stop_stops_too(supervisor: Supervisor) -> None:
    supervisor.stop()
    supervisor.processes[3] = Dummy(supervisor, 3)  # type: ignore[assignment]
    assert not supervisor._stopped()
    assert all(process.draining for process in supervisor.processes.values())


def test_a_cold_stop_counts_no_crash_but_one_that_was_there_before(lab: Lab, supervisor: Supervisor) -> None:
    crashed, interrupted = take(lab, supervisor, runs=True), take(lab, supervisor, process=2, runs=True)
    supervisor.processes[1].exit_code = -signal.SIGSEGV
    supervisor.stop(how="cold")
    assert supervisor._stopped()
    found = lab.engine.find([crashed, interrupted])
    assert (found[crashed].crashes, found[interrupted].crashes, found[interrupted].interruptions) == (1, 0, 1)


def test_every_command_is_in_the_table() -> None:
    assert {function.__name__ for function in COMMANDS.values()} <= set(vars(remote))
