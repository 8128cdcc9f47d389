"""What is public is listed, and nothing else is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import celeriac

PUBLIC = {
    "AsyncResult": type,
    "Celeriac": type,
    "Celery": type,
    "EagerResult": type,
    "GroupResult": type,
    "Signature": type,
    "Task": type,
    "__version__": str,
    "chain": type,
    "chord": type,
    "chunks": type,
    "crontab": type,
    "current_app": object,
    "current_task": object,
    "group": type,
    "maybe_signature": "function",
    "schedule": type,
    "shared_task": "function",
    "signature": "function",
    "solar": type,
    "states": "module",
    "subtask": "function",
    "uuid": "function",
    "xmap": type,
    "xstarmap": type,
}


def test_the_names_of_the_package() -> None:
    assert sorted(celeriac.__all__) == sorted(PUBLIC)
    for name, kind in PUBLIC.items():
        value = getattr(celeriac, name)
        if isinstance(kind, str):
            assert type(value).__name__ == kind
        else:
            assert isinstance(value, kind)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("celeriac.result", ["AsyncResult", "EagerResult", "GroupResult", "ResultSet", "allow_join_result", "result_from_tuple"]),
        ("celeriac.states", ["PENDING", "SUCCESS", "READY_STATES", "precedence", "state"]),
        ("celeriac.exceptions", ["Retry", "Ignore", "Reject", "MaxRetriesExceededError", "SoftTimeLimitExceeded", "TimeLimitExceeded",
                                 "WorkerLostError", "TaskRevokedError", "TimeoutError", "NotRegistered", "ImproperlyConfigured", "CeleryError",
                                 "EnqueueError", "OperationalError", "ChordError"]),
        ("celeriac.signals", ["task_prerun", "task_postrun", "before_task_publish", "worker_ready"]),
        ("celeriac.schedules", ["crontab", "schedule", "solar", "clocked", "crontab_parser", "maybe_schedule", "schedstate", "ParseException",
                                "BaseSchedule"]),
        ("celeriac.utils.log", ["get_task_logger"]),
        ("celeriac.canvas", ["Signature", "chain", "chord", "chunks", "group", "signature", "maybe_signature", "xmap", "xstarmap"]),
        ("celeriac.app", ["shared_task", "app_or_default", "Celeriac", "current_app"]),
    ],
)  # fmt: skip
def test_celerys_import_paths(module: str, names: list[str]) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_an_import_enters_nothing_that_a_caller_does_not_need() -> None:
    """A web process pays for it at each start."""
    code = "import sys, msgspec; before = set(sys.modules); import celeriac; new = set(sys.modules) - before;print(' '.join(sorted(new)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}
    )
    new = set(done.stdout.split())
    costly = {"asyncio", "sqlite3", "inspect", "dataclasses", "concurrent", "multiprocessing", "subprocess", "email", "difflib", "random",
              "decimal", "uuid", "socket", "ssl", "click", "hashlib", "tempfile", "importlib.metadata", "zoneinfo", "urllib.parse"}  # fmt: skip
    assert new & costly == set()
    idle = ("celeriac.worker", "celeriac.cli", "celeriac.engines", "celeriac.testing", "celeriac.schedules", "celeriac.core.schedules")
    assert {name for name in new if name.startswith(idle)} == set()


def test_task_loggers_leave_a_configured_logger_where_it_is() -> None:
    import logging

    from celeriac.utils.log import get_task_logger

    fresh = get_task_logger("a_project_of_its_own.tasks")
    assert fresh.parent is logging.getLogger("celeriac.task")
    configured = logging.getLogger("configured_project")
    configured.setLevel("DEBUG")
    assert get_task_logger("configured_project.tasks").parent is configured
    with pytest.raises(RuntimeError, match="own"):
        get_task_logger("celeriac.task")
