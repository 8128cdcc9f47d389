"""`django.tasks` (or its backport on 5.2) on Celeriac: Django's tasks beside ours, in the same queues, by the same workers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject

if find_spec("django.tasks") is None and find_spec("django_tasks") is None:
    pytest.skip("neither Django 6 nor django-tasks is installed in this environment", allow_module_level=True)

BACKEND = {"default": {"BACKEND": "celeriac.django.TasksBackend", "QUEUES": ["default", "fast"]}}
IMPORTS = """
import time
from datetime import timedelta
from django.utils import timezone
from books.jobs import add, count, die_once, fail, odd, tell
def wait(result, seconds=40):
    deadline = time.monotonic() + seconds
    while not result.is_finished and time.monotonic() < deadline:
        time.sleep(0.01)
        result.refresh()
    return result
"""


@pytest.fixture
def site(make_site: MakeDjangoProject) -> DjangoProject:
    return make_tasks_site(make_site)


def make_tasks_site(make_site: MakeDjangoProject) -> DjangoProject:
    site = make_site(TASKS=BACKEND)
    with (site.directory / "books" / "tasks.py").open("a") as file:
        file.write("\n\nfrom . import jobs  # noqa\n")
    return site


def test_a_result_tells_the_whole_life_of_a_task(site: DjangoProject) -> None:
    waiting = site.python(
        IMPORTS
        + """
result = add.enqueue(2, b=3)
seen = [str(result.status), result.args, result.kwargs, result.attempts, result.started_at]
open("id", "w").write(result.id)
again = add.get_result(result.id)
print(json.dumps([seen, [str(again.status), again.args, again.kwargs, again.enqueued_at == result.enqueued_at]]))"""
    )
    assert waiting == [["READY", [2], {"b": 3}, 0, None], ["READY", [2], {"b": 3}, True]]
    site.worker("-c", "1", "-n", "one@%h")
    done = site.python(
        IMPORTS
        + """
result = wait(add.get_result(open("id").read()))
times = result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at
print(json.dumps([str(result.status), result.return_value, result.args, result.kwargs, times, [w[:4] for w in result.worker_ids], result.task.queue_name]))"""
    )
    assert done == ["SUCCESSFUL", 5, [2], {"b": 3}, True, ["one@"], "default"]


def test_context_queue_async_errors_and_signals(site: DjangoProject) -> None:
    site.worker("-c", "1", "-Q", "celery,fast")
    told, counted, failed, unfit = site.python(
        IMPORTS
        + """
told = tell.enqueue(1, x=[2])
results = [told, count.enqueue(), fail.enqueue(), odd.enqueue()]
for result in results: wait(result)
a, b, c, d = results
print(json.dumps([
    [a.return_value, a.id, a.task.queue_name], b.return_value,
    [str(c.status), c.errors[0].exception_class_path, c.errors[0].exception_class is ValueError, "on purpose" in c.errors[0].traceback],
    [str(d.status), d.errors[0].exception_class_path]]))"""
    )
    shown, id, queue = told
    assert shown == {"attempt": 1, "id": id, "args": [1], "kwargs": {"x": [2]}, "status": "RUNNING"} and queue == "fast"
    assert counted == 0
    assert failed == ["FAILED", "builtins.ValueError", True, True]
    assert unfit == ["FAILED", "builtins.TypeError"]
    heard = (site.directory / "signals").read_text().splitlines()
    assert heard[:2] == ["started tell RUNNING", "finished tell SUCCESSFUL"]
    assert "finished fail FAILED" in heard


def test_a_deferred_task_waits_in_the_engine_and_priorities_count(site: DjangoProject) -> None:
    site.python(
        IMPORTS
        + """
add.using(run_after=timezone.now() + timedelta(days=30)).enqueue(0, 0)
for priority in (-100, -1, 0, 1, 100):
    add.using(priority=priority).enqueue(priority, 0)
from books.tasks import title
title.delay(1)"""
    )
    order = site.python(
        """
from celeriac import current_app as app
print(json.dumps([
    [w.message.priority for w in app.broker.peek("celery")],
    [w.message.eta.isoformat()[:4] > "2000" for w in app.broker.peek("celery", state="scheduled")]]))"""
    )
    priorities, scheduled = order
    assert priorities == [9, 5, 4, 4, 3, 0], "what says nothing is as important as a task of ours that says nothing"
    assert scheduled == [True]


def test_what_dies_with_its_process_runs_again_and_unknown_results_say_so(site: DjangoProject) -> None:
    site.worker("-c", "1")
    found = site.python(
        IMPORTS
        + """
result = wait(die_once.enqueue())
try:
    add.get_result("no such id")
except Exception as error:
    unknown = type(error).__name__
try:
    add.get_result(result.id)
except Exception as error:
    other = type(error).__name__
print(json.dumps([result.return_value, unknown, other]))"""
    )
    assert found == ["alive", "TaskResultDoesNotExist", "TaskResultMismatch"]


def test_tasks_that_cannot_be_are_refused(site: DjangoProject) -> None:
    assert site.python(
        IMPORTS
        + """
found = []
for attempt in (
    lambda: add.using(queue_name="nowhere"),
    lambda: add.using(priority=101),
    lambda: add.enqueue(object(), 1),
):
    try:
        attempt()
    except Exception as error:
        found.append(type(error).__name__)
print(json.dumps(found))"""
    ) in (["InvalidTask", "InvalidTask", "TypeError"], ["InvalidTaskError", "InvalidTaskError", "TypeError"])


OF_DJANGO = '''
"""What is telling for us in Django's own tests of its backends (tests/tasks in Django 6), with a worker in the test's process."""

from django.test import SimpleTestCase
try:
    from django.tasks import TaskResultStatus, default_task_backend
    from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    LOG = "django.tasks"
except ImportError:
    from django_tasks import TaskResultStatus, default_task_backend
    from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    LOG = "django_tasks"

from celeriac import current_app as app
from celeriac.worker.inline import InlineWorker
from books.jobs import add, count, exits, fail, nothing, odd, twice, who

READY, SUCCESSFUL, FAILED = TaskResultStatus.READY, getattr(TaskResultStatus, "SUCCESSFUL", None), TaskResultStatus.FAILED


class Backend(SimpleTestCase):
    def setUp(self):
        self.worker = InlineWorker(app)
        self.worker.__enter__()
        self.addCleanup(self.worker.__exit__)

    def run_one(self, task, *args, **kwargs):
        result = task.enqueue(*args, **kwargs)
        self.assertEqual(result.status, READY)
        self.worker.run_all()
        result.refresh()
        return result

    def test_waiting(self):
        result = nothing.enqueue(1, two=3)
        self.assertIs(result.is_finished, False)
        self.assertEqual([result.started_at, result.last_attempted_at, result.finished_at], [None] * 3)
        with self.assertRaisesMessage(ValueError, "Task has not finished yet"):
            result.return_value
        self.assertEqual((result.task, result.args, result.kwargs, result.attempts, result.errors), (nothing, [1], {"two": 3}, 0, []))
        self.assertEqual(default_task_backend.get_result(result.id), result)
        before = repr(result)
        result.refresh()
        self.assertEqual(repr(result), before)

    def test_done(self):
        result = self.run_one(nothing, 1, two=3)
        self.assertEqual(result.status, SUCCESSFUL)
        self.assertIs(result.is_finished, True)
        self.assertTrue(result.enqueued_at <= result.started_at <= result.last_attempted_at <= result.finished_at)
        self.assertEqual((result.task, result.args, result.kwargs, result.attempts), (nothing, [1], {"two": 3}, 1))
        self.assertIsNone(result.return_value)

    async def test_async(self):
        result = await add.aenqueue(2, 3)
        self.assertEqual(await add.aget_result(result.id), result)
        with self.assertRaises(TaskResultMismatch):
            await nothing.aget_result(result.id)
        with self.assertRaises(TaskResultDoesNotExist):
            await default_task_backend.aget_result("123")
        await result.arefresh()
        self.assertEqual(result.status, READY)

    def test_failures(self):
        for task, kind, message in ((fail, ValueError, "on purpose"), (exits, SystemExit, "by exit"), (twice, ValueError, "ValueError(ValueError(")):
            with self.subTest(task), self.assertLogs(LOG, level="ERROR") as logs:
                result = self.run_one(task)
            self.assertEqual(len(logs.output), 1)
            self.assertEqual(result.status, FAILED)
            with self.assertRaisesMessage(ValueError, "Task failed"):
                result.return_value
            self.assertEqual(result.errors[0].exception_class, kind)
            self.assertIn(message, result.errors[0].traceback)
        result = self.run_one(odd)
        self.assertEqual((result.status, result.errors[0].exception_class), (FAILED, TypeError))

    def test_logs(self):
        with self.assertLogs(LOG, level="DEBUG") as logs:
            result = self.run_one(nothing)
        self.assertEqual(len(logs.output), 3)
        for line, word in zip(logs.output, ("enqueued", "state=RUNNING", "state=SUCCESSFUL")):
            self.assertIn(word, line)
            self.assertIn(result.id, line)
            self.assertNotIn("None", line)

    def test_context(self):
        result = self.run_one(who)
        self.assertEqual(result.return_value, [result.id, 1])
'''
JOBS = """

@task
def nothing(*args, **kwargs): ...


@task
def exits():
    raise SystemExit("by exit")


@task
def twice():
    raise ValueError(ValueError("This failed"))


@task(takes_context=True)
def who(context):
    return [context.task_result.id, context.attempt]
"""


def test_what_django_asks_of_its_own_backends(site: DjangoProject) -> None:
    with (site.directory / "books" / "jobs.py").open("a") as file:
        file.write(JOBS)
    (site.directory / "books" / "tests.py").write_text(OF_DJANGO)
    said = site.run("test", "books")
    assert "Ran 6 tests" in said and "OK" in said
