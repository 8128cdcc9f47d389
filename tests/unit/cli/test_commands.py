"""What each command prints and how it exits, against a real engine and workers that only answer letters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celeriac.cli import calls
from celeriac.cli.doctor import examine
from celeriac.contracts.engine import Engine
from celeriac.contracts.inspect import Depth
from celeriac.core.message import Holder, Record, Settlement, Verdict
from celeriac.core.serialize import decode_body, encode_exception, encode_value
from tests.unit.cli.conftest import Run
from tests.unit.cli.fakes import FakeApp, FakeWorker, message

RunJson = Callable[..., Any]
NAME = "celeriac@a"


def dead_letter(engine: Engine, reason: str = "3 processes died under it") -> str:
    worker = FakeWorker(engine, "celeriac@killer").register()
    sent = message()
    engine.publish([sent])
    (delivery,) = engine.reserve(["celery"], limit=1, holder=Holder(worker.node.id))
    engine.settle([Settlement(id=sent.id, verdict=Verdict.DEAD, lease=delivery.lease, receipt=delivery.receipt, reason=reason)])
    engine.unregister(worker.node.id)
    return sent.id


# -- status, inspect, control ---------------------------------------------------------------------------------------


def test_status_in_celerys_form(engine: Engine, run: Run) -> None:
    with FakeWorker(engine, NAME):
        result = run("-A", "proj", "-C", "status")
    assert (result.exit_code, result.stdout) == (0, "->  celeriac@a: OK\n\n1 node online.\n")


def test_status_when_nobody_is_there(project: Path, run: Run) -> None:
    result = run("-A", "proj", "status")
    assert result.exit_code == 69
    assert "No nodes replied within time constraint" in result.stderr


def test_the_app_may_be_named_after_the_command_or_in_the_environment(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeWorker(engine, NAME):
        assert run("status", "-A", "proj").exit_code == 0
        monkeypatch.setenv("CELERY_APP", "proj")
        assert run("status").exit_code == 0


def test_an_engine_is_enough_for_commands_without_tasks(engine: Engine, run: Run, project: Path) -> None:
    with FakeWorker(engine, NAME):
        assert run("-b", f"sqlite:///{project}/engine.db", "status").exit_code == 0


def test_without_any_app(folder: Path, run: Run) -> None:
    result = run("status")
    assert result.exit_code == 2
    assert "-A" in result.stderr and "CELERIAC_APP" in result.stderr


def test_inspect_shows_lists_and_dicts(engine: Engine, run: Run, run_json: RunJson) -> None:
    with FakeWorker(engine, NAME, active=lambda safe=False: ["one", "two"], stats=lambda: {"pid": 7}):
        assert run("-A", "proj", "-C", "inspect", "active").stdout == "->  celeriac@a: OK\n    * one\n    * two\n\n1 node online.\n"
        assert '    "pid": 7' in run("-A", "proj", "-C", "inspect", "stats").stdout
        assert run_json("inspect", "stats") == {NAME: {"pid": 7}}
        assert run("-A", "proj", "inspect", "active", "-d", "celeriac@b").exit_code == 69


def test_inspect_passes_arguments(engine: Engine, run: Run, run_json: RunJson) -> None:
    with FakeWorker(
        engine, NAME, query_task=lambda ids: ids, registered=lambda taskinfoitems: taskinfoitems, conf=lambda with_defaults: with_defaults
    ):
        assert run_json("inspect", "query_task", "1", "2") == {NAME: ["1", "2"]}
        assert run_json("inspect", "registered", "rate_limit") == {NAME: ["rate_limit"]}
        assert run_json("inspect", "conf", "true") == {NAME: True}


def test_control_by_name(engine: Engine, run: Run, run_json: RunJson) -> None:
    answers = {
        "rate_limit": lambda task_name, rate_limit: {"ok": f"{task_name} {rate_limit}"},
        "pool_grow": lambda n=1: {"ok": f"grown by {n}"},
        "autoscale": lambda max, min: {"error": "Autoscale not enabled"},
        "time_limit": lambda task_name, soft, hard=None: {"ok": f"{soft} {hard}"},
    }
    with FakeWorker(engine, NAME, **answers):
        assert run("-A", "proj", "-C", "control", "rate_limit", "shop.pay", "5/m").stdout == "->  celeriac@a: OK\n        shop.pay 5/m\n"
        assert run_json("control", "pool_grow", "3") == [{NAME: {"ok": "grown by 3"}}]
        assert run_json("control", "time_limit", "shop.pay", "1", "2") == [{NAME: {"ok": "1.0 2.0"}}]
        refused = run("-A", "proj", "-C", "control", "autoscale", "3", "1")
        assert refused.exit_code == 1 and "->  celeriac@a: ERROR\n        Autoscale not enabled" in refused.stdout


def test_wrong_remote_commands(project: Path, run: Run) -> None:
    result = run("-A", "proj", "inspect", "actve")
    assert result.exit_code == 2 and "Did you mean 'active'?" in result.stderr
    assert "QUEUE" in run("-A", "proj", "control", "add_consumer").stderr
    assert "takes no argument" in run("-A", "proj", "inspect", "ping", "x").stderr
    assert "n: " in run("-A", "proj", "control", "pool_grow", "many").stderr


def test_shutdown_tells_whoever_lives(engine: Engine, run_json: RunJson, run: Run) -> None:
    assert run("-A", "proj", "control", "shutdown").exit_code == 69
    worker = FakeWorker(engine, NAME).register()
    assert run_json("control", "shutdown") == [{NAME: {"ok": "shutdown requested"}}]
    assert [letter.method for letter in engine.collect(worker.node.id)] == ["shutdown"]


def test_revoke_needs_no_worker(engine: Engine, run: Run, run_json: RunJson) -> None:
    sent = message()
    engine.publish([sent])
    (reply,) = run_json("control", "revoke", sent.id, "unheard-of")
    assert reply["engine"]["tasks"] == {sent.id: "waiting", "unheard-of": "unknown"}
    assert engine.fetch([sent.id])[sent.id].status == "REVOKED"
    assert run("-A", "proj", "control", "terminate", "KILL", "x").exit_code == 0


# -- call, result, why ----------------------------------------------------------------------------------------------


def test_call_prints_the_id(engine: Engine, run: Run) -> None:
    result = run("-A", "proj", "call", "shop.pay", "-a", "[2]", "-k", '{"y": 3}', "--queue", "mail", "--countdown", "60", "--priority", "7")
    assert result.exit_code == 0, result.output
    id = result.stdout.strip()
    waiting = engine.find([id])[id]
    assert (waiting.queue, waiting.state) == ("mail", "scheduled")
    assert waiting.message is not None
    assert (waiting.message.task, waiting.message.priority) == ("shop.pay", 7)
    assert decode_body(waiting.message)[:2] == ((2,), {"y": 3})


def test_call_of_an_unknown_task_is_sent_with_a_word_of_doubt(engine: Engine, run: Run) -> None:
    result = run("-A", "proj", "call", "shop.pya")
    assert result.exit_code == 0
    assert "Did you mean 'shop.pay'?" in result.stderr
    assert result.stdout.strip() in engine.find([result.stdout.strip()])


@pytest.mark.parametrize(
    ("option", "value"), [("-a", "{}"), ("-a", "[1"), ("-k", "[]"), ("--eta", "tomorrow"), ("--expires", "soon"), ("--priority", "10")]
)
def test_call_with_nonsense(project: Path, run: Run, option: str, value: str) -> None:
    assert run("-A", "proj", "call", "shop.pay", option, value).exit_code == 2


def test_result(engine: Engine, run: Run, run_json: RunJson) -> None:
    engine.store([Record(task_id="good", status="SUCCESS", result=encode_value({"a": 1}))])
    engine.store([Record(task_id="bad", status="FAILURE", result=encode_exception(KeyError("x")), traceback="Traceback: here")])
    engine.store([Record(task_id="half", status="PROGRESS", result=encode_value({"done": 50}))])
    assert run("-A", "proj", "result", "good").stdout == "{'a': 1}\n"
    bad = run("-A", "proj", "result", "bad")
    assert (bad.exit_code, bad.stdout) == (1, "") and "FAILURE: KeyError: 'x'" in bad.stderr
    assert run("-A", "proj", "result", "bad", "--traceback").stdout == "Traceback: here\n"
    half = run("-A", "proj", "result", "half", "--wait", "0.05")
    assert half.exit_code == 75 and "PROGRESS: {'done': 50}" in half.stderr
    assert run("-A", "proj", "result", "none").exit_code == 75
    assert run_json("result", "good")["result"] == {"a": 1}
    assert run_json("result", "none") == {"task_id": "none", "status": "PENDING", "result": None}


def test_result_watched_until_its_end(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.store([Record(task_id="x", status="PROGRESS", result=encode_value(1))])
    timer = threading.Timer(0.2, lambda: engine.store([Record(task_id="x", status="SUCCESS", result=encode_value("done"))]))
    say = calls._say_change
    monkeypatch.setattr(calls, "_say_change", lambda *change: (say(*change), timer.start()))
    result = run("-A", "proj", "result", "x", "--watch", "--wait", "30")
    timer.join()
    assert (result.exit_code, result.stdout) == (0, "PROGRESS: 1\ndone\n")


def test_why(engine: Engine, run: Run, run_json: RunJson) -> None:
    sent = message()
    engine.publish([sent])
    result = run("-A", "proj", "-C", "why", sent.id)
    assert result.exit_code == 0
    assert result.stdout.startswith("waiting: No worker is alive.")
    told = run_json("why", sent.id)
    assert (told["state"], told["reasons"], told["queue"]) == ("waiting", ["no-worker"], "celery")
    assert run("-A", "proj", "why", "unheard-of").exit_code == 1


# -- list, queues, dead, purge --------------------------------------------------------------------------------------


def test_list(engine: Engine, run: Run, run_json: RunJson) -> None:
    id = dead_letter(engine)
    engine.publish([message(), message(queue="mail", delay_seconds=60)])
    FakeWorker(engine, NAME, tasks=["shop.pay", "shop.other"]).register()
    text = run("-A", "proj", "-C", "list").stdout
    for part in ("[queues]", "[nodes]", "[tasks]", "[dead]", NAME, "shop.other", id, "3 processes died under it"):
        assert part in text
    assert run_json("list", "queues")["mail"]["scheduled"] == 1
    assert run_json("list", "tasks")["shop.other"] == [NAME]
    assert run_json("list", "nodes")[0]["name"] == NAME
    assert run_json("list", "dead")[0]["reason"] == "3 processes died under it"
    assert set(run_json("list")) == {"queues", "nodes", "tasks", "dead"}


def test_what_an_engine_cannot_count_is_no_number(engine: Engine, run: Run, run_json: RunJson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(engine), "depth", lambda *_: {"mail": Depth(ready=2, scheduled=None, leased=None)})
    assert run("-A", "proj", "list", "queues").stdout.splitlines()[1].split() == ["mail", "2", "–", "–", "0"]
    assert run_json("list", "queues")["mail"]["scheduled"] is None
    assert "2 tasks" in run("-A", "proj", "doctor").stdout


def test_queues_are_paused_and_resumed(engine: Engine, run: Run, run_json: RunJson) -> None:
    assert run("-A", "proj", "queues", "pause", "mail", "--by", "ann").exit_code == 0
    assert engine.depth(["mail"])["mail"].paused_by == "ann"
    assert "paused by ann" in run("-A", "proj", "queues").stdout
    assert run_json("queues", "resume", "mail")["mail"]["paused_by"] is None


def test_dead_letters(engine: Engine, run: Run, run_json: RunJson) -> None:
    assert run("-A", "proj", "dead", "list").stdout == "No dead letters.\n"
    first, second, third = (dead_letter(engine) for _ in range(3))
    assert {row["id"] for row in run_json("dead", "list")} == {first, second, third}
    assert run("-A", "proj", "dead", "replay", first).stdout == "Replayed 1 dead letter.\n"
    assert engine.find([first])[first].state == "ready"
    assert run("-A", "proj", "dead", "replay", "unheard-of").exit_code == 1
    assert run("-A", "proj", "dead", "discard").exit_code == 2
    assert run("-A", "proj", "dead", "discard", "--all", input="n\n").exit_code == 1
    assert run_json("dead", "discard", "--all", "-f")["discarded"] == [third, second]
    assert run_json("dead", "list") == []


def test_purge_asks_and_counts(engine: Engine, run: Run, run_json: RunJson) -> None:
    engine.publish([message(), message(delay_seconds=60), message(queue="mail")])
    refused = run("-A", "proj", "purge", input="n\n")
    assert refused.exit_code == 1 and "remove 2 tasks from queue: celery" in refused.stderr
    done = run("-A", "proj", "purge", "-f")
    assert done.stdout == "Purged 2 messages from 1 known task queue.\n"
    assert "Other queues hold tasks too: 'mail' (1)" in done.stderr
    assert run("-A", "proj", "purge", "-f").stdout == "No messages purged from 1 queue.\n"
    assert run_json("purge", "-f", "-Q", "mail,celery", "-X", "celery") == {"purged": 1, "queues": ["mail"]}


# -- report, shell, completion, help --------------------------------------------------------------------------------


def test_report(project: Path, run: Run, run_json: RunJson) -> None:
    (project / "proj" / "celery.py").write_text("from celeriac import Celeriac\napp = Celeriac('proj', task_default_queue='mail')\n")
    assert "task_default_queue: 'mail'" in run("-A", "proj", "report").stdout
    assert run_json("report")["settings"]["task_default_queue"] == "mail"


def test_shell(engine: Engine, run: Run) -> None:
    result = run("-A", "proj", "shell", "--python", input="print(app.main, pay(1, 1))\n")
    assert "proj 2" in result.output


def test_completion(run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_CELERIAC_COMPLETE" in run("completion", shell).stdout


def test_every_command_has_help(run: Run) -> None:
    from celeriac.cli.main import _COMMANDS

    for name in _COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0 and "Usage: celeriac" in result.stdout


def test_unknown_and_later_commands(run: Run) -> None:
    assert "Did you mean 'worker'?" in run("wroker").stderr
    later = run("logtool")
    assert later.exit_code == 64 and "no log tool" in later.stderr


# -- troubles -------------------------------------------------------------------------------------------------------


def test_an_unusable_engine_is_one_line(folder: Path, run: Run) -> None:
    result = run("-b", "sqlite:////nowhere/at/all.db", "list")
    assert result.exit_code == 69
    assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr


def test_a_wrong_setting_is_one_line(project: Path, run: Run) -> None:
    (project / "proj" / "celery.py").write_text(
        "from celeriac import Celeriac\napp = Celeriac('proj')\napp.config_from_object({'task_time_limt': 3})\n"
    )
    result = run("-A", "proj", "list")
    assert result.exit_code == 78
    assert "task_time_limit" in result.stderr


def test_a_broken_tasks_module_shows_the_users_own_traceback(project: Path, run: Run) -> None:
    (project / "proj" / "celery.py").write_text("from celeriac import Celeriac\napp = Celeriac('proj', include=['proj.tasks'])\n")
    (project / "proj" / "tasks.py").write_text("import no_such_package_at_all\n")
    result = run("-A", "proj", "list", "tasks")
    assert result.exit_code == 2
    assert "No module named 'no_such_package_at_all'" in result.stderr and 'tasks.py", line 1' in result.stderr


# -- doctor ---------------------------------------------------------------------------------------------------------


def findings(result: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        found.setdefault(finding["level"], []).append(f"{finding['check']}: {finding['sentence']}")
    return found


def test_doctor_is_content(engine: Engine, run: Run) -> None:
    with FakeWorker(engine, NAME, tasks=["shop.pay"]):
        result = run("-A", "proj", "-C", "doctor")
        assert result.exit_code == 0, result.stdout
        assert result.stdout.endswith("All is well.\n")
        assert json.loads(run("-A", "proj", "doctor", "--json").stdout)["ok"] is True


def test_doctor_finds_all_that_is_wrong(engine: Engine, run: Run) -> None:
    FakeWorker(engine, NAME, tasks=["shop.pay"]).register()
    FakeWorker(engine, NAME, tasks=["shop.pay"]).register()
    FakeWorker(engine, "celeriac@silent").register(lease_seconds=-30)
    dead_letter(engine, "it killed 3 processes")
    engine.publish([message(), message("shop.new"), message(queue="mail")])
    engine.pause(["celery"], by="ann")
    result = run("-A", "proj", "doctor", "--json")
    assert result.exit_code == 1
    found = findings(result)
    wrong = "\n".join(found["wrong"])
    assert "workers: 2 workers are named celeriac@a." in wrong
    assert "leases: celeriac@silent" in wrong
    assert "queues: Nobody consumes 'mail', where 1 task waits." in wrong
    assert "tasks: No live worker of 'celery' knows 'shop.new', of which 1 task waits." in wrong
    assert "dead: 1 dead letter in 'celery'. The latest: it killed 3 processes" in wrong
    assert "'shop.pay'" not in wrong
    assert "queues: 'celery' is paused by ann, with 2 tasks waiting." in found["note"]


def test_doctor_without_workers(engine: Engine, run: Run) -> None:
    result = run("-A", "proj", "-C", "doctor")
    assert result.exit_code == 1
    assert "No worker is alive: nothing is run." in result.stdout and "celeriac -A proj worker" in result.stdout


def test_doctor_of_an_engine_that_cannot_be_used(folder: Path, run: Run) -> None:
    result = run("-b", "sqlite:////nowhere/at/all.db", "doctor", "--json")
    assert result.exit_code == 1
    assert "engine: sqlite:////nowhere/at/all.db cannot be used" in findings(result)["wrong"][0]


def test_doctor_of_wrong_settings(project: Path, run: Run) -> None:
    (project / "proj" / "celery.py").write_text(
        "from celeriac import Celeriac\napp = Celeriac('proj')\napp.config_from_object({'task_time_limt': 3})\n"
    )
    result = run("-A", "proj", "doctor", "--json")
    assert result.exit_code == 1
    assert "task_time_limit" in findings(result)["wrong"][0]


def test_doctor_compares_clocks() -> None:
    class Late:
        def time(self) -> float:
            return time.time() - 100.5

        def monotonic(self) -> float:
            return time.monotonic()

    app: Any = FakeApp()
    wrong = [finding.sentence for finding in examine(app, clock=Late()) if (finding.check, finding.level) == ("clock", "wrong")]
    assert wrong == ["The engine's clock is 1 min 40 s ahead of this machine's; tasks with an eta start that much early."]
