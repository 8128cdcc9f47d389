"""What becomes of the deliveries of a process that is gone. Only what it was running is touched; the rest is as if nothing had happened."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Raw, json, structs

from ..core.message import Delivery, Record, Settlement, Verdict

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
    running = {task.task_id for task in process.page.running()} - finished
    held = settler.broker.held(process.plan.node, process.number)
    still_ours = {delivery.id for delivery in held}
    kept = [settlement for settlement in outcomes if settlement.id in still_ours or settlement.lease is None]
    back = [_verdict(process, delivery, running) for delivery in held if delivery.id not in finished]
    lost = [_lost(process, task_id) for task_id in running - still_ours]
    settler.settle([*kept, *back, *lost])


def _verdict(process: Process, delivery: Delivery, running: set[str]) -> Settlement:
    verdict, message = Verdict.RELEASED, None
    if delivery.id in running and not process.interrupted:
        name = delivery.message.task if delivery.message else "?"
        if process.doomed is not None and delivery.message is not None:
            message = structs.replace(delivery.message, doom=process.doomed)
        else:
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
    error = process.doomed or {
        "exc_type": "WorkerLostError",
        "exc_message": [f"Worker exited prematurely: {_how(process.exit_code)}."],
        "exc_module": "celery.exceptions",
    }
    record = Record(
        task_id=task_id,
        status="REVOKED" if error["exc_type"] == "TaskRevokedError" else "FAILURE",
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
