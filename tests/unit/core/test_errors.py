"""Errors carry their data, and read as sentences."""

from __future__ import annotations

import builtins
import datetime as dt
import pickle

import pytest

from celeriac.core import errors


def test_are_one_tree() -> None:
    for name, found in vars(errors).items():
        if (
            isinstance(found, type)
            and issubclass(found, Exception)
            and found.__module__ == errors.__name__
            and name != "SoftTimeLimitExceeded"
        ):
            assert issubclass(found, errors.CeleriacError), name
    assert issubclass(errors.TimeoutError, builtins.TimeoutError)
    assert issubclass(errors.SoftTimeLimitExceeded, Exception) and not issubclass(errors.SoftTimeLimitExceeded, errors.CeleriacError)


@pytest.mark.parametrize("kind", [errors.NotRegistered, errors.QueueNotFound])
def test_key_errors_read_as_sentences(kind: type[Exception]) -> None:
    assert str(kind("No such thing.")) == "No such thing." and str(kind()) == ""


def test_carry_their_data() -> None:
    assert errors.EncodeError("no", "args[0]").path == "args[0]"
    lost = errors.EnqueueError("no", "shop.mail", "5")
    assert (lost.task_name, lost.task_id) == ("shop.mail", "5")
    assert errors.NodeLost("n").node == "n"
    assert errors.MaxRetriesExceededError("no", task_args=(1,)).task_kwargs == {}
    reject = errors.Reject("bad", requeue=True)
    assert (reject.reason, reject.requeue) == ("bad", True)


def test_retry_says_when() -> None:
    assert str(errors.Retry("again")) == "again"
    assert str(errors.Retry(exc=ValueError("x"), when=60)) == "Retry in 60s: ValueError('x')"
    assert errors.Retry(when=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)).humanize() == "at 2026-01-01 00:00:00+00:00"
    assert errors.Retry().humanize() == "in 0s"


def test_travel_between_processes() -> None:
    for exc in (errors.TaskRevokedError("x"), errors.Retry("x", None, 5), errors.Reject("x", True), errors.SoftTimeLimitExceeded()):
        assert pickle.loads(pickle.dumps(exc)).args == exc.args
