"""P10: nothing unsafe is decoded; what is malformed or unknown becomes a dead letter with its reason, and the worker goes on."""

from __future__ import annotations

import base64
import os
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw, json

from celeriac.exceptions import ContentDisallowed
from celeriac.tasks.result import AsyncResult
from tests.support.workers import Project, until

pytestmark = pytest.mark.promise(10)


class Bomb:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def message(task_id: str, body: Any, content_type: str = "application/json", task: str = "proj.add") -> Any:
    from celeriac.core.message import Message

    return Message(id=task_id, task=task, body=Raw(json.encode(body)), content_type=content_type)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def assert_dead(project: Project, task_id: str, *words: str) -> None:
    """It is a dead letter that says why, its result says so too, and the worker works."""
    letter = until(lambda: project.dead().get(task_id), f"{task_id} is a dead letter")
    record = project.wait_state(task_id, "FAILURE")
    for word in words:
        assert word in letter.reason, letter.reason
        assert word in bytes(record.result).decode(), record.result
    assert project.tasks.add.delay(20, 3).get(timeout=40) == 23
    project.wait_empty()


def test_p10_a_pickle_is_not_opened(project: Project) -> None:
    worker = project.worker("-c", "1")
    children = worker.children()
    bomb = project.directory / "exploded"
    body = base64_of(pickle.dumps(((Bomb(bomb), 1), {}, {})))
    project.broker.publish([message("pickled", body, "application/x-python-serialize")])
    assert_dead(project, "pickled", "application/x-python-serialize", "accept_content")
    assert not bomb.exists()
    assert worker.children() == children


@pytest.mark.parametrize(
    ("task_id", "body", "content_type", "words"),
    [
        ("unknown-format", "AAAA", "application/x-strange", ["application/x-strange"]),
        ("not-an-array", {"args": [1, 2]}, "application/json", []),
        ("too-short", [[1, 2]], "application/json", []),
        ("args-no-array", ["12", {}, {}], "application/json", []),
        ("kwargs-no-object", [[1, 2], [], {}], "application/json", []),
        ("unknown-tag", [[{"__type__": "os.system", "__value__": "touch exploded"}, 2], {}, {}], "application/json", ["os.system"]),
        ("bad-date", [[{"__type__": "datetime", "__value__": "yesterday"}, 2], {}, {}], "application/json", []),
    ],
)
def test_p10_a_body_that_cannot_be_decoded_is_a_dead_letter(
    project: Project, task_id: str, body: Any, content_type: str, words: list[str]
) -> None:
    worker = project.worker("-c", "1")
    children = worker.children()
    neighbours = [project.tasks.add.delay(number, 1) for number in range(5)]
    project.broker.publish([message(task_id, body, content_type)])
    neighbours += [project.tasks.add.delay(number, 1) for number in range(5)]
    assert_dead(project, task_id, *words)
    for neighbour in neighbours:
        project.wait_state(neighbour.id, "SUCCESS")
    assert worker.children() == children
    assert not (project.directory / "exploded").exists()


@pytest.mark.parametrize("garbage", [b"\x00\xff\x93", b"{", b"[]", b'{"id": 5}', b""])
def test_p10_a_corrupt_message_is_a_dead_letter(project: Project, garbage: bytes) -> None:
    result = project.tasks.add.delay(1, 2)
    others = [project.tasks.add.delay(number, 1) for number in range(5)]
    with sqlite3.connect(project.directory / "celeriac.db") as other:
        other.execute("UPDATE messages SET message = ? WHERE id = ?", (garbage, result.id))
    other.close()
    worker = project.worker("-c", "1")
    assert_dead(project, result.id)
    for neighbour in others:
        project.wait_state(neighbour.id, "SUCCESS")
    assert "Traceback" not in worker.log()
    listed = project.command("dead", "list")
    assert listed.returncode == 0 and result.id in listed.stdout, listed.stdout + listed.stderr


def test_p10_wrong_arguments_fail_the_task_and_nothing_else(project: Project) -> None:
    project.worker("-c", "1")
    project.broker.publish([message("too-many", [[1, 2, 3], {}, {}])])
    record = project.wait_state("too-many", "FAILURE")
    assert b"TypeError" in bytes(record.result)
    assert not project.dead()


def test_p10_an_unknown_serializer_is_an_error_of_the_call(project: Project) -> None:
    for serializer in ("pickle", "strange"):
        with pytest.raises(Exception, match=serializer):
            project.tasks.add.apply_async((1, 2), serializer=serializer)
    assert project.broker.depth(["celery"])["celery"].ready == 0


def test_p10_exceptions_travel_as_data(project: Project) -> None:
    project.worker("-c", "1")
    result = project.tasks.strange.delay()
    with pytest.raises(Exception, match="odd: 7") as caught:
        result.get(timeout=40)
    assert type(caught.value).__name__ == "Strange"
    data = json.decode(project.backend.fetch([result.id])[result.id].result)
    assert data["exc_type"] == "Strange" and set(data) <= {"exc_type", "exc_message", "exc_module"}


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [("os", "system", ["touch {path}"]), ("subprocess", "Popen", [["touch", "{path}"]]), ("builtins", "eval", ["open('{path}', 'w')"])],
)
def test_p10_a_forged_exception_calls_nothing(project: Project, module: str, name: str, arguments: list[Any]) -> None:
    from celeriac.core.message import Record

    path = project.directory / "exploded"
    filled = json.decode(json.encode(arguments).decode().replace("{path}", str(path)))
    forged = Raw(json.encode({"exc_type": name, "exc_message": filled, "exc_module": module}))
    project.backend.store([Record(task_id="forged", status="FAILURE", result=forged)])
    with pytest.raises(Exception, match="."):
        AsyncResult("forged", app=project.app).get(timeout=5)
    assert not path.exists()


def test_p10_a_pickle_as_a_result_is_not_opened(project: Project) -> None:
    assert issubclass(ContentDisallowed, ValueError)
    bomb = project.directory / "exploded"
    project.tasks.add.delay(1, 1)
    with sqlite3.connect(project.directory / "celeriac.db") as other:
        columns = ("forged", "SUCCESS", 0.0, pickle.dumps(Bomb(bomb)))
        other.execute("INSERT INTO results (task_id, status, stored, record) VALUES (?, ?, ?, ?)", columns)
    other.close()
    with pytest.raises(Exception, match="."):
        AsyncResult("forged", app=project.app).get(timeout=5)
    assert not bomb.exists()
