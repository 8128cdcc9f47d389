"""Celeriac's errors, where Celery's users look for them."""

from __future__ import annotations

from .core.errors import (
    AlreadyRegistered,
    CeleriacError,
    ChordError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    EngineCorrupt,
    EngineUnavailable,
    EnqueueError,
    Ignore,
    ImproperlyConfigured,
    MaxRetriesExceededError,
    NodeLost,
    NotRegistered,
    OperationalError,
    QueueNotFound,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskError,
    TaskPredicate,
    TaskRevokedError,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
)

CeleryError = CeleriacError
"""Celery's name for the base of all errors."""

__all__ = [
    "AlreadyRegistered",
    "CeleriacError",
    "CeleryError",
    "ChordError",
    "ContentDisallowed",
    "DecodeError",
    "EncodeError",
    "EngineCorrupt",
    "EngineUnavailable",
    "EnqueueError",
    "Ignore",
    "ImproperlyConfigured",
    "MaxRetriesExceededError",
    "NodeLost",
    "NotRegistered",
    "OperationalError",
    "QueueNotFound",
    "Reject",
    "Retry",
    "SoftTimeLimitExceeded",
    "TaskError",
    "TaskPredicate",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerLostError",
]
