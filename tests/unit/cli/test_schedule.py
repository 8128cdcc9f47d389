"""`celeriac schedule` and the flags of `celeriac beat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from tests.unit.cli.conftest import Run


@pytest.fixture
def schedule(project: Path, run: Run) -> Any:
    return lambda *words: run("-A", "proj", "schedule", *words)


def answer(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_from_add_to_remove(schedule: Any) -> None:
    assert "Nothing is scheduled" in schedule("list").stdout
    added = schedule("add", "nightly", "shop.pay", "--cron", "30 2 * * *", "--tz", "Europe/Berlin", "-a", "[1]", "-k", '{"y": 2}')
    assert "Entry 'nightly' added: every day at 02:30 Europe/Berlin; next 20" in added.stdout
    shown = answer(schedule("show", "nightly", "--json"))
    assert (shown["task"], shown["args"], shown["kwargs"], shown["state"], shown["source"]) == (
        "shop.pay",
        [1],
        {"y": 2},
        "planned",
        "stored",
    )
    changed = schedule("edit", "nightly", "--overlap", "skip", "--max-runs", "3", "--args", "[5]")
    assert changed.exit_code == 0
    again = answer(schedule("show", "nightly", "--json"))
    assert (again["overlap"], again["max_runs"], again["args"], again["kwargs"]) == ("skip", 3, [5], {"y": 2})
    assert (again["planned_at"], again["comes"]) == (shown["planned_at"], shown["comes"])
    assert "Paused 1 entry." in schedule("pause", "nightly").stdout
    assert schedule("pause", "nightly").exit_code == 1
    assert answer(schedule("list", "--json"))[0]["state"] == "paused"
    assert "Resumed 1 entry." in schedule("resume", "nightly").stdout
    assert "Removed 1 entry." in schedule("remove", "nightly").stdout
    missing = schedule("show", "nightly")
    assert missing.exit_code == 1 and "There is no entry 'nightly'" in missing.stderr


def test_when(schedule: Any) -> None:
    schedule("add", "a", "shop.pay", "--every", "90")
    schedule("add", "b", "shop.pay", "--at", "2099-05-18T09:00", "--tz", "Asia/Kathmandu")
    schedule("add", "c", "shop.pay", "--solar", "sunset", "52.5", "13.4", "--paused")
    rows = {row["name"]: row for row in answer(schedule("list", "--json"))}
    assert rows["a"]["comes"] == "every 1 minute 30 seconds"
    assert rows["b"]["planned_at"] == "2099-05-18T03:15:00+00:00"
    assert (rows["c"]["comes"], rows["c"]["state"]) == ("at sunset at 52.5°N 13.4°E", "paused")
    table = schedule("list").stdout
    assert "every 1 minute 30 seconds" in table and "paused" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Say when"),
        (("--cron", "61 * * * *"), "minute is 0 to 59"),
        (("--cron", "* * * * *", "--every", "5"), "exclude one another"),
        (("--every", "5", "-a", "{}"), "must be a JSON array"),
        (("--every", "5", "-a", "[1"), "is not JSON"),
        (("--every", "5", "--starts-at", "tomorrow"), "is not a date and time"),
        (("--cron", "* * * * *", "--tz", "Europe/Bern"), "Unknown time zone"),
    ],
)
def test_mistakes_are_said_in_a_line(schedule: Any, words: tuple[str, ...], said: str) -> None:
    result = schedule("add", "a", "shop.pay", *words)
    assert result.exit_code in (1, 2) and said in result.stderr
    assert "Traceback" not in result.output
    assert answer(schedule("list", "--json")) == []


def test_an_entry_is_added_once(schedule: Any) -> None:
    assert schedule("add", "a", "shop.pay", "--every", "90").exit_code == 0
    twice = schedule("add", "a", "shop.pay", "--every", "80")
    assert twice.exit_code == 1 and "`schedule edit`" in twice.stderr


def test_an_unknown_task_is_remarked(schedule: Any) -> None:
    result = schedule("add", "a", "shop.payy", "--every", "90")
    assert result.exit_code == 0 and "has no task 'shop.payy'" in result.stderr


def test_run_and_history(schedule: Any, engine: Engine) -> None:
    schedule("add", "a", "shop.pay", "--every", "90", "-a", "[7]")
    id = schedule("run", "a").stdout.strip()
    assert [waiting.id for waiting in engine.peek("celery")] == [id]
    (line,) = answer(schedule("history", "a", "--json"))
    assert (line["id"], line["outcome"], line["status"]) == (id, "sent", None)
    assert line["why"].startswith("by hand, ")
    assert id in schedule("history").stdout
    assert "The ledger has no lines of an entry 'b'." in schedule("history", "b").stdout


def test_preview_of_an_entry_and_of_a_schedule(schedule: Any) -> None:
    schedule("add", "nightly", "shop.pay", "--cron", "30 2 28 3 *", "--tz", "Europe/Berlin")
    lines = answer(schedule("preview", "nightly", "-n", "2", "--json"))
    assert len(lines) == 2 and all("T0" in line["planned_at"] for line in lines)
    text = schedule("preview", "0 9 * * mon-fri", "-n", "3", "--tz", "Asia/Kathmandu").stdout
    assert text.count("09:00:00 +0545") == 3
    assert len(schedule("preview", "90", "-n", "3").stdout.splitlines()) == 3
    wrong = schedule("preview", "nightlyy")
    assert wrong.exit_code == 1 and "There is no entry 'nightlyy', and as a schedule it cannot be read" in wrong.stderr


def test_flags_of_beat_without_meaning_are_accepted_with_a_line_each(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("celeriac.beat.beat.run_beat", lambda app, **options: started.append(options) or 0)
    monkeypatch.setattr("celeriac.worker.logs.setup_logging", lambda *_: None)
    result = run("-A", "proj", "beat", *"-s file -S some.where:Scheduler --enable-remote-control --max-interval 3 -n x".split())
    assert result.exit_code == 0, result.output
    assert started == [{"max_interval_seconds": 3.0}]
    for said in ("no file is needed", "-S some.where:Scheduler: beat keeps", "--enable-remote-control:"):
        assert said in result.stderr


def test_beat_refuses_settings_that_make_no_sense(folder: Path, run: Run) -> None:
    (folder / "proj.py").write_text(
        "from celeriac import Celeriac\n"
        "app = Celeriac('proj', beat_schedule={'x': {'task': 'a', 'schedule': 5, 'overlap': 'often'}})\n"
    )  # fmt: skip
    result = run("-A", "proj", "beat")
    assert result.exit_code == 78 and "Entry 'x': overlap is one of 'allow', 'skip', 'queue', 'cancel', not 'often'." in result.stderr
