"""What becomes of the deliveries of a process that is gone. Only what it was running is touched; the rest is as if nothing had happened."""

from __future__ import annotations

import logging
from collections.abc import Container
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Raw, json, structs

from ..core.message import Delivery, Record, Settlement, Verdict
from ..core.states import FAILURE, READY_STATES, REVOKED

if TYPE_CHECKING:
    from .process import Process
    from .worker import Settler

logger = logging.getLogger("celeriac.worker")


def recover(process: Process, settler: Settler) -> None:
    """Settles what its page says is finished, gives back what it had not begun, and judges what it was running.

    Raises EngineUnavailable: nothing was changed; call it again.
    """
    outcomes = process.page.outcomes()
    finished = {settlement.id for settlement in outcomes}
    ran = [task for task in process.page.running() if task.task_id not in finished]
    running = {task.task_id for task in ran}
    acknowledged = {task.task_id for task in ran if task.acknowledged}
    held = settler.broker.held(process.plan.node, process.number)
    still_ours = {delivery.id for delivery in held}
    kept = [settlement for settlement in outcomes if settlement.id in still_ours or settlement.lease is None]
    back = [_verdict(process, delivery, running) for delivery in held if delivery.id not in finished]
    gone = acknowledged - still_ours
    if gone:  # not what it was about to acknowledge when others got it
        gone -= set(settler.broker.lost(process.plan.node, process.number))
    lost = [_lost(process, task_id) for task_id in _without_outcome(gone, settler)]
    settler.settle([*kept, *back, *lost])


def give_back_abandoned(node: str, numbers: Container[int], settler: Settler) -> None:
    """Gives back what the engine says is held by processes of this node that are gone, and whose leavings were settled: it has forgotten that, or has given them
    something since.

    `numbers`: of those that are there, or still to be recovered; they see to it themselves. Raises EngineUnavailable.
    """
    abandoned = [delivery for delivery in settler.broker.held(node) if delivery.lease.holder.process not in numbers]
    if abandoned:
        logger.warning("%d tasks that processes of this worker held, which are gone, are ready again.", len(abandoned))
        settler.broker.settle([Settlement(id=one.id, verdict=Verdict.RELEASED, lease=one.lease, receipt=one.receipt) for one in abandoned])


def _without_outcome(ids: set[str], settler: Settler) -> list[str]:
    """Those that cannot have been settled in the moment between their outcome and the word that they run no more."""
    records = settler.backend.fetch(sorted(ids)) if ids else {}
    return [task_id for task_id in sorted(ids) if task_id not in records or records[task_id].status not in READY_STATES]


def _verdict(process: Process, delivery: Delivery, running: set[str]) -> Settlement:
    verdict, message = Verdict.RELEASED, None
    doom = process.doom
    if delivery.id in running and not process.interrupted:
        name = delivery.message.task if delivery.message else "?"
        if doom is not None and doom.task_id == delivery.id and delivery.message is not None:
            message = structs.replace(delivery.message, doom=doom.error)
        elif doom is None or process.exit_code != -doom.signum:  # else it was killed for a task that had just ended
            verdict = Verdict.CRASHED
            logger.error(
                "Process %d (pid %d) died (%s) while it ran %s[%s]; the task is ready again (crash %d of it).",
                process.number,
                process.pid,
                _how(process.exit_code),
                name,
                delivery.id,
                delivery.crashes + 1,
            )
    return Settlement(id=delivery.id, verdict=verdict, lease=delivery.lease, receipt=delivery.receipt, message=message)


def _lost(process: Process, task_id: str) -> Settlement:
    """A task that was acknowledged before it ran: it asked to run at most once, and it has."""
    logger.error(
        "Process %d (pid %d) died (%s) while it ran %s, which is not repeated.",
        process.number,
        process.pid,
        _how(process.exit_code),
        task_id,
    )
    error = (
        process.doom.error
        if process.doom is not None and process.doom.task_id == task_id
        else {
            "exc_type": "WorkerLostError",
            "exc_message": [f"Worker exited prematurely: {_how(process.exit_code)}."],
            "exc_module": "celery.exceptions",
        }
    )
    record = Record(
        task_id=task_id,
        status=REVOKED if error["exc_type"] == "TaskRevokedError" else FAILURE,
        result=Raw(json.encode(error)),
        date_done=datetime.now(UTC),
        worker=process.plan.hostname,
    )
    return Settlement(id=task_id, verdict=Verdict.DONE, lease=None, record=record)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        import signal

        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"exit code {exit_code}"
