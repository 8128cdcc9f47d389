"""A real Celery on the other side of a RabbitMQ queue: it sends and we take, we send and it runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from celeriac.engines.rabbitmq import RabbitMQEngine
from celeriac.testing.contract.harness import eventually, message, settlement, start, take
from tests.support.rabbitmq import Server, young

pytestmark = young

PYTHON = Path(os.environ.get("CELERIAC_TEST_CELERY", Path(__file__).parents[2] / ".bench/celery/bin/python"))
PROGRAM = """
import sys
from celery import Celery
app = Celery("proj", broker=sys.argv[1])
app.conf.update(task_default_queue_type="quorum", task_ignore_result=True, worker_hijack_root_logger=False, broker_native_delayed_delivery_queue_type="classic")

@app.task(name="proj.write")
def write(path, text):
    with open(path, "w") as file:
        file.write(text)

if sys.argv[2] == "send":
    write.apply_async(("there", "é"), task_id="from-celery", headers={"tenant": "x"})
else:
    app.worker_main(["worker", "-P", "solo", "--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "warning"])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not PYTHON.exists():
        pytest.skip(
            f"There is no Celery at {PYTHON}. `python -m bench` installs one there; or name a python with Celery 5.7 in CELERIAC_TEST_CELERY."
        )
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "proj.py"
    path.write_text(PROGRAM)
    return path


def test_celery_sends_and_we_take(server: Server, program: Path) -> None:
    with closing(RabbitMQEngine(server.url)) as engine:
        subprocess.run([str(PYTHON), str(program), server.url, "send"], check=True, timeout=100)
        (delivery,) = take(engine, start(engine))
        assert delivery.message is not None
        assert (delivery.id, delivery.message.task, delivery.message.headers) == ("from-celery", "proj.write", {"tenant": "x"})
        assert msgspec.json.decode(delivery.message.body)[:2] == [["there", "é"], {}]
        assert engine.settle([settlement(delivery)]) == []


def test_we_send_and_celery_runs(server: Server, program: Path, tmp_path: Path) -> None:
    target = tmp_path / "written"
    body = msgspec.Raw(msgspec.json.encode([[str(target), "ü"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]))
    with closing(RabbitMQEngine(server.url)) as engine:
        engine.publish([message("from-us", task="proj.write", body=body)])
    with open(tmp_path / "log", "wb") as log:
        worker = subprocess.Popen([str(PYTHON), str(program), server.url, "work"], stdout=log, stderr=log)
    try:
        eventually(lambda: target.exists() and target.read_text() == "ü", 100.0)
    finally:
        worker.kill()
        worker.wait()
