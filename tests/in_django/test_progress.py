"""How far a task is, as a browser sees it: real servers, real clients."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject
from tests.support.workers import PATIENCE_SECONDS, until

URLS = """
from django.urls import include, path

urlpatterns = [path("celeriac/", include("celeriac.django.urls"))]
"""
ASGI = """
import os
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from celeriac.django.consumers import websocket_urlpatterns

application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter(websocket_urlpatterns)})
"""
WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
server.set_app(get_wsgi_application())
print(f"running on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""
TASKS = '''

@shared_task(bind=True)
def count(self, total: int) -> dict:
    """Goes on at each number when the test says so."""
    import time
    from decimal import Decimal

    from django.conf import settings

    for number in range(1, total + 1):
        self.update_state(state="PROGRESS", meta={"current": number, "total": total, "status": f"Book {number}"})
        while not (settings.BASE_DIR / f"go-{number}").exists():
            time.sleep(0.01)
    return {"counted": total, "price": Decimal("1.50")}


@shared_task
def fail() -> None:
    raise ValueError("the password is 1234")
'''
SERVERS = ("wsgi", "asgi")
LONG = {"CELERIAC_PROGRESS_SECONDS": 3600}
"""A stream of a test ends by itself only where that is the question."""


class Site:
    """A project and a server in front of it."""

    def __init__(self, project: DjangoProject, kind: str) -> None:
        (project.directory / "config" / "urls.py").write_text(URLS)
        (project.directory / "config" / "asgi.py").write_text(ASGI)
        with (project.directory / "books" / "tasks.py").open("a") as file:
            file.write(TASKS)
        command = ["-c", WSGI] if kind == "wsgi" else ["-m", "uvicorn", "--port", "0", "--log-level", "info", "config.asgi:application"]
        project.start(*command, ready="running on http")
        found = re.search(r"running on (http://[\d.:]+)", project.log())
        assert found is not None
        self.project, self.url = project, found[1]

    def send(self, call: str) -> tuple[str, str]:
        """A task's id, and its key."""
        id, key = self.project.python(
            f"from books.tasks import *; from celeriac.django.keys import key_of; sent = {call}; print(json.dumps([sent.id, key_of(sent)]))"
        )
        return id, key

    def go(self, number: int) -> None:
        (self.project.directory / f"go-{number}").touch()

    def get(self, path: str, **headers: str) -> HTTPResponse:
        request = urllib.request.Request(f"{self.url}/celeriac/{path}", headers=headers)
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
        return answer

    def status(self, key: str) -> dict[str, Any]:
        with self.get(f"status/{key}") as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def refused(self, path: str, method: str = "GET") -> int:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/celeriac/{path}", method=method), timeout=PATIENCE_SECONDS)
        with closing(caught.value):
            return caught.value.code


def events_of(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@pytest.mark.parametrize("kind", SERVERS)
def test_a_browser_is_told_each_step_and_the_end(make_site: MakeDjangoProject, kind: str) -> None:
    site = Site(make_site(migrated=False, **LONG), kind)
    _, key = site.send("count.delay(2)")
    with site.get(f"events/{key}") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        events = events_of(stream)
        waiting = next(events)
        assert (waiting["state"], waiting["ready"], waiting["percent"], waiting["text"]) == ("PENDING", False, None, "Waiting")
        site.project.worker("-c", "1")
        seen = [next(event for event in events if event["state"] == "PROGRESS")]
        assert site.status(key) == seen[0]
        for number in (1, 2):
            site.go(number)
            seen.append(next(events))
        assert list(events) == [], "nothing comes after the end, and the server ends the stream"
    assert [(event["done"], event["percent"], event["text"]) for event in seen] == [
        (1, 50, "Book 1"),
        (2, 100, "Book 2"),
        (None, 100, "Done"),
    ]
    assert (seen[2]["ready"], seen[2]["result"]) == (True, {"counted": 2, "price": "1.50"})
    with site.get(f"events/{key}", **{"Last-Event-ID": "end"}) as answer:
        assert answer.status == 204


@pytest.mark.parametrize("kind", SERVERS)
def test_many_streams_at_once_stop_nobody_and_each_is_told_the_end(make_site: MakeDjangoProject, kind: str) -> None:
    site = Site(make_site(migrated=False, CELERIAC_PROGRESS_STREAMS=2, **LONG), kind)
    _, key = site.send("count.delay(1)")
    streams = [site.get(f"events/{key}") for _ in range(2 if kind == "wsgi" else 12)]
    told = [events_of(stream) for stream in streams]
    assert {next(events)["state"] for events in told} == {"PENDING"}
    if kind == "wsgi":
        with site.get(f"events/{key}") as answer:
            assert answer.status == 204, "no thread is left for a further stream: that browser asks now and then"
    assert site.status(key)["state"] == "PENDING", "while they are open, others are answered"
    site.go(1)
    site.project.worker("-c", "1")
    assert [list(events)[-1]["state"] for events in told] == ["SUCCESS"] * len(told)
    for stream in streams:
        stream.close()

    def opens() -> bool:
        with site.get(f"events/{key}") as answer:
            return answer.status == 200

    until(opens, "a stream may be opened when others have ended")


def test_a_stream_ends_in_time_also_when_the_task_does_not(make_site: MakeDjangoProject) -> None:
    project = make_site(migrated=False, CELERIAC_PROGRESS_SECONDS=0.2)
    (project.directory / "config" / "urls.py").write_text(URLS)
    assert project.python(
        """
import asyncio
from django.test import AsyncClient, Client
from django.urls import reverse
from celeriac.django.keys import key_of
url = reverse("celeriac:events", args=[key_of("7")])
async def listen():
    return [part async for part in (await AsyncClient().get(url)).streaming_content]
streams = [list(Client().get(url, **{"wsgi.multithread": True}).streaming_content), asyncio.run(listen())]
alone = Client().get(url, **{"wsgi.multithread": False}).status_code
print(json.dumps([[b"PENDING" in b"".join(stream) for stream in streams], alone]))"""
    ) == [[True, True], 204]


def test_only_who_has_the_key_may_ask_and_errors_tell_little(make_site: MakeDjangoProject) -> None:
    site = Site(make_site(migrated=False, **LONG), "asgi")
    site.project.worker("-c", "1")
    id, key = site.send("fail.delay()")
    until(lambda: site.status(key)["ready"], "it has failed")
    failed = site.status(key)
    assert (failed["state"], failed["error"], failed["text"], failed["percent"]) == ("FAILURE", "ValueError", "Failed", None)
    assert "1234" not in json.dumps(failed)
    assert [site.refused(f"{view}/{bad}") for view in ("status", "events") for bad in (id, key[:-1], key + "x", "a/b")] == [404] * 8
    assert [site.refused(f"{view}/{key}", "POST") for view in ("status", "events")] == [405] * 2


def test_a_web_socket_is_told_each_step_and_closed_at_the_end(make_site: MakeDjangoProject) -> None:
    from websockets.exceptions import ConnectionClosedOK, InvalidStatus
    from websockets.sync.client import connect

    site = Site(make_site(migrated=False, **LONG), "asgi")
    _, key = site.send("count.delay(1)")
    url = site.url.replace("http", "ws") + "/celeriac/"
    with connect(url + key, proxy=None) as socket:
        assert json.loads(socket.recv(PATIENCE_SECONDS))["state"] == "PENDING"
        site.project.worker("-c", "1")
        site.go(1)
        with pytest.raises(ConnectionClosedOK):
            while True:
                last = json.loads(socket.recv(PATIENCE_SECONDS))
        assert last["result"] == {"counted": 1, "price": "1.50"}
    with pytest.raises(InvalidStatus, match="403"):
        connect(url + key[:-1], proxy=None)


def test_a_function_of_the_project_may_decide_instead(make_site: MakeDjangoProject) -> None:
    project = make_site(migrated=False, CELERIAC_PROGRESS_PERMISSION="books.rules.may_see")
    (project.directory / "books" / "rules.py").write_text("def may_see(user, task_id):\n    return task_id.startswith('open')\n")
    (project.directory / "config" / "urls.py").write_text(URLS)
    assert project.python(
        """
from django.test import Client
from celeriac.django.keys import key_of
ask = Client(raise_request_exception=True).get
print(json.dumps([key_of("open/1"), ask("/celeriac/status/open/1").json()["state"], ask("/celeriac/status/shut").status_code]))"""
    ) == ["open/1", "PENDING", 404]


def test_the_tag_shows_a_bar_without_anything_inline_also_when_results_are_away(make_site: MakeDjangoProject) -> None:
    templates = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
    project = make_site(migrated=False, TEMPLATES=templates, STATIC_URL="/static/", CELERY_RESULT_BACKEND="redis://127.0.0.1:1/0")
    (project.directory / "config" / "urls.py").write_text(URLS)
    page = project.python(
        """
from django.template import engines
from django.contrib.staticfiles import finders
source = '{% load celeriac %}{% task_progress "7" label=label next="/there/" %}{% task_status_url "7" %}'
page = engines["django"].from_string(source).render({"label": 'A "<b>import</b>"'})
print(json.dumps(page + str([bool(finders.find(f"celeriac/progress.{kind}")) for kind in ("js", "css")])))"""
    )
    assert "[True, True]" in page and "Waiting" in page and 'next="/there/"' in page
    assert 'aria-label="A &quot;&lt;b&gt;import&lt;/b&gt;&quot;"' in page and "<b>" not in page
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page) == [(' src="/static/celeriac/progress.js" defer', "")]
    assert "style=" not in page and "<style" not in page and not re.search(r"\son\w+=", page)


def test_what_tasks_say_of_themselves_is_understood_in_the_usual_words(make_site: MakeDjangoProject) -> None:
    shown = make_site(migrated=False).python(
        """
from msgspec import Raw, json as mjson
from celeriac.core.message import Record
from celeriac.django.progress import describe
metas = [{"done": 1, "total": 3}, {"current": 5, "total": 4, "description": "x"}, {"percent": 12.9}, {"done": 1, "total": 0}, {"message": "m"}, "text", None, {"done": "1", "total": []}]
found = [describe(Record(task_id="1", status="HALF-WAY", result=Raw(mjson.encode(meta)))) for meta in metas]
print(json.dumps([[one["percent"], one["text"]] for one in found]))"""
    )
    unknown = [None, "Running"]
    assert shown == [[33, "Running"], [100, "x"], [12, "Running"], unknown, [None, "m"], unknown, unknown, unknown]
