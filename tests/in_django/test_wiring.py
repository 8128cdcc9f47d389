"""One line in INSTALLED_APPS, or the classic proj/celery.py: both give tasks, workers and commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject

CLASSIC = """
import os
from celeriac import Celeriac

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app = Celeriac("classic")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

@app.task(bind=True, ignore_result=True)
def debug_task(self):
    print(f"Request: {self.request!r}")
"""
BUY = """
from books.models import Book
from books.tasks import atitle, buy, title
book = Book.objects.create(title="Momo")
print(json.dumps([title.delay(book.pk).get(timeout=40), atitle.delay(book.pk).get(timeout=40)]))
"""


def make_classic(site: DjangoProject) -> None:
    (site.directory / "config" / "celery.py").write_text(CLASSIC)
    (site.directory / "config" / "__init__.py").write_text("from .celery import app as celery_app\n\n__all__ = ('celery_app',)\n")


@pytest.mark.parametrize(
    "arguments", [[], ["--pool-start-method", "spawn"], ["-P", "threads"], ["-P", "asyncio"], ["-P", "gevent"]], ids=" ".join
)
def test_a_line_in_installed_apps_is_enough(make_site: MakeDjangoProject, arguments: list[str]) -> None:
    site = make_site()
    site.worker("-c", "1", *arguments)
    assert site.python(BUY) == ["Momo", "Momo"]


def test_the_classic_celery_py_is_the_app(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_BROKER_URL=None)
    make_classic(site)
    site.start("-m", "celeriac", "-A", "config", "worker", "-l", "info", "-c", "1", ready="ready.")
    assert site.python(BUY) == ["Momo", "Momo"]
    # Whoever imports the app alone means the same database: Django is set up for him.
    alone = [sys.executable, "-c", "from config.celery import app; print(app.broker.url, app.broker.nodes()[0].pool)"]
    done = subprocess.run(alone, cwd=site.directory, env=site.environment(), capture_output=True, text=True, timeout=100)
    assert done.stdout == "django://default prefork\n", done.stderr
    assert "config.celery.debug_task" in site.run("celeriac", "inspect", "registered", "-t", "20")


def test_the_commands_find_the_app_by_themselves(make_site: MakeDjangoProject) -> None:
    site = make_site()
    site.worker("-c", "1", "-n", "here@%h")
    assert "here@" in site.run("celeriac", "status", "-t", "20")
    assert "here@" in site.run("celeriac", "--settings", "config.settings", "status", "-t", "20")
    assert "worker" in site.run("celeriac", "--help")
    assert "manage.py celeriac" in site.run("celeriac", "worker", "--help")


def test_settings_of_django_are_those_of_the_app(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_TASK_TIME_LIMIT=77)
    shown = site.python(
        "from celeriac import current_app as app; print(json.dumps([app.main, app.conf.task_time_limit, app.conf.timezone]))"
    )
    assert shown == ["config", 77, "Europe/Berlin"]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("CELERY_TASK_TIME_LIMT", 5, "Did you mean 'CELERY_TASK_TIME_LIMIT'?"), ("CELERY_TASK_ACKS_LATE", "perhaps", "perhaps")],
)
def test_check_tells_what_is_wrong_with_a_setting(make_site: MakeDjangoProject, setting: str, value: object, said: str) -> None:
    found = make_site(migrated=False, **{setting: value}).run("check", fails=True)
    assert "celeriac.E001" in found and said in found


def test_check_remarks_on_a_setting_that_means_nothing_here(make_site: MakeDjangoProject) -> None:
    found = make_site(migrated=False, CELERY_WORKER_PREFETCH_MULTIPLIER=1).run("check")
    assert "celeriac.I001" in found and "worker_prefetch_multiplier" in found


def test_a_task_starts_in_the_projects_language_and_time_zone(make_site: MakeDjangoProject) -> None:
    site = make_site()
    site.worker("-c", "1")
    spoken = site.python(
        "from books.tasks import speak; print(json.dumps([speak.delay('de', 'Asia/Kathmandu').get(timeout=40) for _ in range(3)]))"
    )
    assert spoken == [["en", "Europe/Berlin"]] * 3


def test_call_command_runs_a_command_too(make_site: MakeDjangoProject, tmp_path: Path) -> None:
    site = make_site()
    assert (
        site.python(
            "from books.tasks import title; title.delay(1)\n"
            "import io, contextlib\nfrom django.core.management import call_command\n"
            "with contextlib.redirect_stdout(io.StringIO()): call_command('celeriac', 'purge', '-f')\n"
            "from celeriac import current_app as app\nprint(app.broker.depth(['celery'])['celery'].ready)"
        )
        == 0
    )
