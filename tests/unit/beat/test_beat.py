"""Beat on a clock that the test turns: what is sent when, by whom, and what the ledger says of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac import crontab, schedule
from celeriac.core.errors import EngineUnavailable, ImproperlyConfigured
from celeriac.core.schedules import BaseSchedule, clocked
from celeriac.core.serialize import decode_body
from celeriac.tasks.entries import occurrence_id
from tests.unit.beat.conftest import NOON, Lab

HOUR = 3600.0


def planned(lab: Lab, name: str) -> list[float]:
    return [line.planned_at - NOON for line in lab.ledger(name) if line.outcome == "sent"]


# -- what is sent ----------------------------------------------------------------------------------------------------------


def test_an_interval_begins_one_interval_after_it_was_made_and_does_not_drift(lab: Lab) -> None:
    lab.app.schedules.put("tick", 10, lab.job)
    beat = lab.beat()
    lab.let_pass(beat, 65, step=0.7)
    assert planned(lab, "tick") == [10, 20, 30, 40, 50, 60]
    assert [message.id for message in lab.waiting()] == [occurrence_id("tick", NOON + at) for at in (10, 20, 30, 40, 50, 60)]
    assert lab.state("tick").total_run_count == 6


def test_a_restarted_beat_goes_on_with_the_phase(lab: Lab) -> None:
    lab.app.schedules.put("tick", 10, lab.job)
    lab.let_pass(lab.beat(), 14)
    lab.let_pass(lab.beat(), 14)
    lab.let_pass(lab.beat(), 14)
    assert planned(lab, "tick") == [10, 20, 30, 40]


def test_any_number_of_beats_send_each_occurrence_once(lab: Lab) -> None:
    lab.app.schedules.put("tick", 10, lab.job)
    lab.app.schedules.put("cron", crontab(), lab.job)
    beats = [lab.beat() for _ in range(5)]
    for _ in range(130):
        lab.clock.advance(1)
        seen = [beat.store.due(10) for beat in beats]
        for beat, due in zip(beats, seen, strict=True):
            beat._fire(due.states, due.now)
    assert planned(lab, "tick") == [10.0 * number for number in range(1, 14)]
    assert planned(lab, "cron") == [60, 120]
    assert {line.suppressed for line in lab.ledger("tick")} == {4}
    assert len(lab.waiting()) == 15


def test_a_beat_that_was_stopped_between_looking_and_sending_changes_nothing(lab: Lab) -> None:
    lab.app.schedules.put("tick", 10, lab.job)
    stopped, other = lab.beat(), lab.beat()
    lab.clock.advance(10)
    due = stopped.store.due(10)
    lab.let_pass(other, 35)
    stopped._fire(due.states, due.now)
    assert planned(lab, "tick") == [10, 20, 30, 40]
    assert len(lab.waiting()) == 4


def test_the_sleep_lasts_until_the_next_occurrence_but_not_longer_than_a_second(lab: Lab) -> None:
    beat = lab.beat()
    assert lab.settle(beat) == 1.0
    lab.app.schedules.put("tick", 10, lab.job)
    lab.clock.advance(9.75)
    assert lab.settle(beat) == pytest.approx(0.25)


def test_no_setting_makes_a_change_wait_for_longer_than_five_seconds(make_lab: Any) -> None:
    assert make_lab(beat_max_loop_interval=300).beat().max_interval_seconds == 5.0
    assert make_lab(beat_max_loop_interval=0.5).beat().max_interval_seconds == 0.5


def test_the_message_is_what_the_entry_says(lab: Lab) -> None:
    day = datetime(2026, 1, 2, tzinfo=UTC)
    lab.app.schedules.put(
        "full", crontab(), lab.job, (1, day), {"x": timedelta(1)}, options={"priority": 7, "queue": "high", "headers": {"a": 1}}
    )
    lab.let_pass(lab.beat(), 60)
    (found,) = lab.engine.peek("high")
    message = found.message
    assert message is not None
    assert decode_body(message)[:2] == ((1, day), {"x": timedelta(1)})
    assert (message.task, message.priority, message.queue) == ("job", 7, "high")
    assert message.headers == {"a": 1, "celery_beat_task": True, "periodic_task_name": "full", "planned_at": "2026-05-13T12:01:00+00:00"}


def test_expiry_and_countdown_follow_the_engines_clock(lab: Lab) -> None:
    """The clock of this machine is years away from that of the engine."""
    lab.app.schedules.put("a", 60, lab.job, options={"expires": 30})
    lab.app.schedules.put("b", 60, lab.job, options={"expires": timedelta(hours=1), "countdown": 5}, expires=20)
    lab.job.expires = 45
    lab.app.schedules.put("c", 60, lab.job)
    lab.let_pass(lab.beat(), 60)
    found = {message.headers["periodic_task_name"]: message for message in [*lab.waiting()]}
    scheduled = lab.engine.peek("celery", state="scheduled")
    assert found["a"].expires is not None and found["a"].expires.timestamp() == NOON + 90
    assert found["c"].expires is not None and found["c"].expires.timestamp() == NOON + 105
    assert scheduled[0].message is not None and scheduled[0].message.expires is not None
    assert scheduled[0].message.expires.timestamp() == NOON + 80
    assert scheduled[0].due_at == NOON + 65


# -- the settings ----------------------------------------------------------------------------------------------------------


def test_entries_of_the_settings_of_add_periodic_task_and_of_the_decorator(make_lab: Any) -> None:
    lab = make_lab(
        beat_schedule={
            "in settings": {
                "task": "job",
                "schedule": timedelta(seconds=10),
                "args": (1,),
                "options": {"queue": "high"},
                "misfire": "skip",
            },
            "off": {"task": "job", "schedule": 10, "enabled": False},
        }
    )

    @lab.app.on_after_finalize.connect
    def add(sender: Any, **_: Any) -> None:
        sender.add_periodic_task(20, lab.job.s(2), name="added", overlap="skip", expires=5)

    @lab.app.periodic(crontab(), name="decorated")
    def every_minute() -> None: ...

    beat = lab.beat()
    assert [state.name for state in lab.app.schedules] == ["added", "decorated", "in settings"]
    entries = {state.name: state.entry for state in lab.app.schedules}
    assert entries["in settings"].misfire == "skip" and entries["added"].overlap == "skip"
    assert bytes(entries["added"].options) == b'{"expires":5}'
    assert {entry.source for entry in entries.values()} == {"settings of lab"}
    lab.let_pass(beat, 60)
    assert planned(lab, "added") == [20], "nobody runs it, so the others overlap"
    assert planned(lab, "decorated") == [60]
    assert len(lab.engine.peek("high")) == 6


def test_entries_that_left_the_settings_are_removed_and_those_that_stay_keep_their_phase(make_lab: Any) -> None:
    lab = make_lab(beat_schedule={name: {"task": "job", "schedule": 10} for name in ("stays", "goes", "changes")})
    lab.app.schedules.put("stored", 10, lab.job)
    lab.let_pass(lab.beat(), 15)
    new = Lab(beat_schedule={"stays": {"task": "job", "schedule": 10, "args": [5]}, "changes": {"task": "job", "schedule": 20}})
    with new.app.with_engine(lab.engine):
        new.clock, new.engine = lab.clock, lab.engine
        beat = new.beat()
        assert [state.name for state in new.app.schedules] == ["changes", "stays", "stored"]
        new.let_pass(beat, 15)
    new.close()
    assert planned(lab, "stays") == [10, 20, 30]
    assert planned(lab, "changes") == [10], "20 s from the change on"
    assert planned(lab, "stored") == [10, 20, 30]


def test_an_entry_of_the_settings_does_not_replace_a_stored_one(make_lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    lab = make_lab(beat_schedule={"mine": {"task": "job", "schedule": 10}})
    lab.app.schedules.put("mine", 30, lab.job)
    lab.beat()
    assert lab.state("mine").entry.schedule == "30"
    assert "'mine' of the settings is not used" in caplog.text


def test_settings_that_make_no_sense_are_refused_with_the_entrys_name(make_lab: Any) -> None:
    lab = make_lab(beat_schedule={"bad": {"task": "job", "schedule": 10, "misfire": "sometimes"}})
    with pytest.raises(ImproperlyConfigured, match="Entry 'bad': misfire is one of 'skip', 'once', 'all', not 'sometimes'"):
        lab.beat()


def test_the_deadline_of_crontabs_is_a_misfire_window(make_lab: Any) -> None:
    """Celery's setting: what was missed by more is skipped."""
    lab = make_lab(
        beat_cron_starting_deadline=300,
        beat_schedule={"cron": {"task": "job", "schedule": crontab(0)}, "tick": {"task": "job", "schedule": 3600}},
    )
    lab.beat()
    lab.clock.advance(HOUR + 400)
    lab.settle(lab.beat())
    assert lab.outline("cron") == [(HOUR, "skipped", "misfire window", 1)]
    assert lab.outline("tick") == [(HOUR, "sent", "misfire", 1)]


# -- misfires --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["*/5 * * * *", 300])
@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ({}, [(300, "skipped", "misfire", 11), (3600, "sent", "misfire", 1)]),
        ({"misfire": "once"}, [(300, "skipped", "misfire", 11), (3600, "sent", "misfire", 1)]),
        ({"misfire": "once", "misfire_window": 60}, [(300, "skipped", "misfire window", 12)]),
        ({"misfire": "skip"}, [(300, "skipped", "misfire", 12)]),
        ({"misfire": "skip", "misfire_grace": 650}, [(300, "skipped", "misfire", 10), (3300, "sent", "", 1), (3600, "sent", "", 1)]),
        ({"misfire": "all"}, [(300.0 * number, "sent", "misfire", 1) for number in range(1, 13)]),
        ({"misfire": "all", "misfire_window": 1000},
         [(300, "skipped", "misfire window", 8), *((300.0 * number, "sent", "misfire", 1) for number in range(9, 13))]),
    ],
)  # fmt: skip
def test_down_for_an_hour(lab: Lab, when: Any, policies: dict[str, Any], expected: list[Any]) -> None:
    """Every five minutes, and no beat from 12:00 to 13:01:40: twelve occurrences were missed."""
    lab.app.schedules.put("job", when, lab.job, **policies)
    lab.clock.advance(HOUR + 100)
    lab.settle(lab.beat())
    assert lab.outline("job") == expected
    assert len(lab.waiting()) == sum(outcome == "sent" for _, outcome, _, _ in expected)
    state = lab.state("job")
    assert state.planned_at == NOON + 3900, "and it goes on where it would have been"


def test_down_for_an_hour_with_an_occurrence_just_due(lab: Lab) -> None:
    """What is in time is sent for what was missed."""
    lab.app.schedules.put("job", 300, lab.job)
    lab.clock.advance(HOUR + 2)
    lab.settle(lab.beat())
    assert lab.outline("job") == [(300, "skipped", "misfire", 11), (3600, "sent", "", 1)]


def test_a_short_stop_is_no_misfire(lab: Lab) -> None:
    lab.app.schedules.put("tick", 1, lab.job, misfire="skip")
    beat = lab.beat()
    lab.let_pass(beat, 5)
    lab.clock.advance(9)
    lab.settle(beat)
    assert planned(lab, "tick") == [float(second) for second in range(1, 15)]


def test_thousands_that_were_missed_are_sent_in_steps(lab: Lab) -> None:
    lab.app.schedules.put("tick", 1, lab.job, misfire="all")
    lab.clock.advance(HOUR)
    lab.settle(lab.beat())
    assert planned(lab, "tick") == [float(second) for second in range(1, 3601)]


def test_a_month_of_missed_seconds_is_one_line(lab: Lab) -> None:
    lab.app.schedules.put("tick", 1, lab.job)
    lab.clock.advance(30 * 86400 + 0.5)
    lab.settle(lab.beat())
    first, *sent = lab.ledger("tick")
    assert first.occurrences + len(sent) == 30 * 86400
    assert first.until == sent[0].planned_at - 1
    assert len(sent) == 10, "those within the grace of ten seconds"


def test_one_off(lab: Lab) -> None:
    lab.app.schedules.put("once", clocked(datetime.fromtimestamp(NOON + 30, UTC)), lab.job)
    lab.app.schedules.put("over", clocked(datetime.fromtimestamp(NOON - 30, UTC)), lab.job)
    lab.app.schedules.put("too late", clocked(datetime.fromtimestamp(NOON - 30, UTC)), lab.job, misfire="skip")
    beat = lab.beat()
    lab.let_pass(beat, 100)
    assert lab.outline("once") == [(30, "sent", "", 1)]
    assert lab.outline("over") == [(-30, "sent", "misfire", 1)]
    assert lab.outline("too late") == [(-30, "skipped", "misfire", 1)]
    assert lab.state("once").due_at is None
    lab.app.schedules.put("once", clocked(datetime.fromtimestamp(NOON + 30, UTC)), lab.job, (2,))
    lab.let_pass(beat, 100)
    assert len(lab.ledger("once")) == 1, "it has been"


# -- overlaps --------------------------------------------------------------------------------------------------------------


def test_overlap_skip(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job, overlap="skip")
    beat = lab.beat()
    lab.let_pass(beat, 15)
    running = lab.take()
    lab.let_pass(beat, 20)
    lab.finish(running)
    lab.let_pass(beat, 10)
    assert lab.outline("job") == [(10, "sent", "", 1), (20, "skipped", "overlap", 1), (30, "skipped", "overlap", 1), (40, "sent", "", 1)]


def test_overlap_counts_what_still_waits_too(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job, overlap="skip")
    lab.let_pass(lab.beat(), 35)
    assert len(lab.waiting()) == 1


def test_overlap_queue_sends_one_when_the_one_before_has_ended(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job, overlap="queue")
    beat = lab.beat()
    lab.let_pass(beat, 12)
    running = lab.take()
    lab.let_pass(beat, 20)
    assert lab.outline("job") == [(10, "sent", "", 1), (20, "queued", "overlap", 1), (30, "skipped", "overlap", 1)]
    other = lab.beat()  # what is queued is not in a beat's memory
    lab.finish(running)
    lab.let_pass(other, 2)
    assert lab.outline("job")[1] == (20, "sent", "overlap", 1)
    lab.finish(lab.take())
    lab.let_pass(other, 8)
    assert lab.outline("job")[3:] == [(40, "sent", "", 1)]
    assert [line.late_seconds for line in lab.ledger("job")][1] == pytest.approx(13, abs=2)


def test_overlap_cancel_stops_the_one_before(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job, overlap="cancel")
    beat = lab.beat()
    lab.let_pass(beat, 15)
    (running,) = lab.take()
    lab.let_pass(beat, 5)
    (letter,) = lab.engine.collect("anna")
    assert (letter.method, letter.arguments["task_id"]) == ("terminate", running.id)
    assert planned(lab, "job") == [10, 20]
    lab.let_pass(beat, 10)
    assert len(lab.waiting()) == 1, "one that waited is gone"
    records = lab.engine.fetch([line.message_id or "" for line in lab.ledger("job")])
    assert [record.status for record in records.values()] == ["REVOKED"]


def test_overlaps_within_what_was_missed(lab: Lab) -> None:
    for overlap in ("skip", "queue", "cancel"):
        lab.app.schedules.put(overlap, 300, lab.job, overlap=overlap, misfire="all")
    lab.clock.advance(1000)
    lab.settle(lab.beat())
    assert [line[:2] for line in lab.outline("skip")] == [(300, "sent"), (600, "skipped"), (900, "skipped")]
    assert [line[:2] for line in lab.outline("queue")] == [(300, "sent"), (600, "queued"), (900, "skipped")]
    assert [line[:2] for line in lab.outline("cancel")] == [(300, "skipped"), (600, "skipped"), (900, "sent")]


# -- limits ----------------------------------------------------------------------------------------------------------------


def test_limits(lab: Lab) -> None:
    at = datetime.fromtimestamp(NOON, UTC)
    lab.app.schedules.put("three", 10, lab.job, max_runs=3)
    lab.app.schedules.put("ends", 10, lab.job, ends_at=at + timedelta(seconds=30))
    lab.app.schedules.put("starts", 10, lab.job, starts_at=at + timedelta(seconds=33))
    lab.app.schedules.put("began", 10, lab.job, starts_at=at - timedelta(seconds=33))
    lab.let_pass(lab.beat(), 60)
    assert planned(lab, "three") == [10, 20, 30]
    assert planned(lab, "ends") == [10, 20, 30]
    assert planned(lab, "starts") == [33, 43, 53]
    assert planned(lab, "began") == [7, 17, 27, 37, 47, 57]
    assert [lab.state(name).due_at for name in ("three", "ends")] == [None, None]
    lab.app.schedules.put("three", 10, lab.job, max_runs=5)
    lab.let_pass(lab.beat(), 60)
    assert lab.state("three").total_run_count == 5


def test_what_has_expired_is_not_sent(lab: Lab) -> None:
    lab.app.schedules.put("job", 300, lab.job, expires=600, misfire="all")
    lab.clock.advance(1300)
    lab.settle(lab.beat())
    assert lab.outline("job") == [
        (300, "skipped", "expired", 1),
        (600, "skipped", "expired", 1),
        (900, "sent", "misfire", 1),
        (1200, "sent", "misfire", 1),
    ]
    assert [message.expires.timestamp() - NOON for message in lab.waiting() if message.expires] == [1500, 1800]


def test_jitter_delays_each_by_its_own_and_not_beyond_the_next(lab: Lab) -> None:
    lab.app.schedules.put("job", 60, lab.job, jitter=30)
    lab.app.schedules.put("short", 10, lab.job, jitter=1000)
    lab.let_pass(lab.beat(), 610)
    lines = lab.ledger("job")
    delays = [line.due_at - line.planned_at for line in lines]
    assert planned(lab, "job") == [60.0 * number for number in range(1, 11)]
    assert all(0 <= delay <= 30 for delay in delays) and len(set(delays)) == 10
    assert max(delays) - min(delays) > 5
    assert all(line.late_seconds <= 1 for line in lines)
    assert planned(lab, "short") == [10.0 * number for number in range(1, 61)]


# -- paused and changed ----------------------------------------------------------------------------------------------------


def test_what_was_planned_while_it_was_paused_is_one_line(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job, misfire="all")
    beat = lab.beat()
    lab.let_pass(beat, 15)
    lab.app.schedules.pause("job")
    lab.let_pass(beat, 100)
    lab.app.schedules.resume("job")
    lab.let_pass(beat, 10)
    assert lab.outline("job") == [(10, "sent", "", 1), (20, "skipped", "paused", 10), (120, "sent", "", 1)]


def test_run_by_hand_leaves_the_schedule_where_it_stood(lab: Lab) -> None:
    lab.app.schedules.put("job", 10, lab.job)
    beat = lab.beat()
    lab.let_pass(beat, 13)
    result = lab.app.schedules.run("job")
    lab.let_pass(beat, 10)
    assert lab.outline("job") == [(10, "sent", "", 1), (13, "sent", "by hand", 1), (20, "sent", "", 1)]
    assert lab.ledger("job")[1].message_id == result.id
    lab.app.schedules.pause("job")
    lab.app.schedules.run("job")
    assert lab.state("job").enabled is False


def test_a_changed_schedule_counts_from_now_and_other_changes_leave_it(lab: Lab) -> None:
    beat = lab.beat()
    lab.app.schedules.put("job", 10, lab.job)
    lab.let_pass(beat, 15)
    lab.app.schedules.put("job", 10, lab.job, (1,))
    lab.let_pass(beat, 7)
    lab.app.schedules.put("job", 4, lab.job, (1,))
    lab.let_pass(beat, 10)
    assert planned(lab, "job") == [10, 20, 26, 30]


# -- troubles --------------------------------------------------------------------------------------------------------------


def test_an_entry_whose_call_cannot_be_made_has_its_lines_and_disturbs_nobody(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.app.schedules.put("bad", 10, lab.job, options={"no_such": 1})
    lab.app.schedules.put("good", 10, lab.job)
    lab.let_pass(lab.beat(), 30)
    assert planned(lab, "good") == [10, 20, 30]
    assert [line[:2] for line in lab.outline("bad")] == [(10, "skipped"), (20, "skipped"), (30, "skipped")]
    assert "apply_async() has no option 'no_such'" in lab.ledger("bad")[0].why
    assert "apply_async() has no option 'no_such'" in caplog.text


class Odd(BaseSchedule):
    """A schedule of somebody's own."""

    def next_after(self, moment: datetime) -> datetime:
        return moment + timedelta(seconds=7)


class Broken(Odd):
    def next_after(self, moment: datetime) -> datetime:
        if moment.timestamp() > NOON + 1:
            raise RuntimeError("out of order")
        return super().next_after(moment)


def test_schedules_of_somebodys_own_are_known_to_the_apps_beats(make_lab: Any) -> None:
    lab = make_lab(beat_schedule={"odd": {"task": "job", "schedule": Odd()}})
    beat = lab.beat()
    lab.let_pass(beat, 30)
    assert planned(lab, "odd") == [7, 14, 21, 28]
    with pytest.raises(ValueError, match="cannot keep a class of your own"):
        lab.app.schedules.put("stored", Odd(), lab.job)


def test_a_beat_that_does_not_know_a_schedule_leaves_it_to_others(make_lab: Any) -> None:
    lab = make_lab(beat_schedule={"odd": {"task": "job", "schedule": Odd()}})
    knows = lab.beat()
    ignorant = lab.beat()
    ignorant._own = {}
    lab.let_pass(ignorant, 10)
    assert lab.ledger("odd") == []
    lab.let_pass(knows, 5)
    assert planned(lab, "odd") == [7, 14]


def test_a_schedule_that_raises_is_left_alone_for_a_while(make_lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    lab = make_lab(beat_schedule={"broken": {"task": "job", "schedule": Broken()}, "good": {"task": "job", "schedule": 10}})
    lab.let_pass(lab.beat(), 100)
    assert len(planned(lab, "good")) == 10
    assert [line[1:3] for line in lab.outline("broken")] == [("skipped", "RuntimeError: out of order")] * 2
    assert "out of order" in caplog.text


def test_an_engine_that_is_away_is_waited_for_in_two_lines(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    lab.app.schedules.put("job", 10, lab.job)
    beat = lab.beat()
    lab.clock.advance(10)
    store, times = beat.store, []

    class Away:
        def due(self, limit: int) -> Any:
            times.append(1)
            if len(times) == 4:
                beat.store = store
            raise EngineUnavailable("it is away")

    beat.store = Away()  # type: ignore[assignment]
    beat.max_interval_seconds = 0.001
    tick = beat.tick

    def tick_and_stop() -> float:
        pause = tick()
        beat.stop()
        return pause

    beat.tick = tick_and_stop  # type: ignore[method-assign]
    beat.run()
    assert planned(lab, "job") == [10]
    assert caplog.text.count("it is away") == 1
    assert caplog.text.count("is back after") == 1


def test_old_lines_are_pruned(make_lab: Any) -> None:
    lab = make_lab(beat_ledger_expires=100)
    lab.app.schedules.put("job", 10, lab.job)
    lab.let_pass(lab.beat(), 300)
    lab.settle(lab.beat())
    assert min(planned(lab, "job")) >= 200


# -- the preview -----------------------------------------------------------------------------------------------------------


def test_preview(lab: Lab) -> None:
    lab.app.schedules.put("job", crontab(30, 2, tz="Europe/Berlin"), lab.job, max_runs=3)
    shown = lab.app.schedules.preview("job", 10)
    assert [f"{line.planned_at:%d %b %H:%M %z}" for line in shown] == ["14 May 02:30 +0200", "15 May 02:30 +0200", "16 May 02:30 +0200"]
    spring = lab.app.schedules.preview(crontab(30, 2, day_of_month=28, month_of_year=3, tz="Europe/Berlin"), 1)
    assert spring[0].remark == "02:30 does not exist: it runs right after the gap"
    assert [line.planned_at.second for line in lab.app.schedules.preview(schedule(20), 3)] == [20, 40, 0]


def test_there_is_no_such_entry(lab: Lab) -> None:
    lab.app.schedules.put("nightly", 10, lab.job)
    with pytest.raises(LookupError, match="There is no entry 'nigthly'. Did you mean 'nightly'"):
        lab.app.schedules.run("nigthly")


def test_entries_of_the_settings_are_changed_there(make_lab: Any) -> None:
    lab = make_lab(beat_schedule={"mine": {"task": "job", "schedule": 10}})
    lab.beat()
    with pytest.raises(ValueError, match="belongs to the settings of lab"):
        lab.app.schedules.put("mine", 20, lab.job)
    with pytest.raises(ValueError, match="Remove it there"):
        lab.app.schedules.remove("mine")
    assert lab.app.schedules.pause("mine") == ["mine"]
    lab.let_pass(lab.beat(), 30)
    assert lab.ledger("mine") == [], "it stays paused over the restart of a beat"
