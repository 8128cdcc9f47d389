"""Runs the shop as it runs on a server, visits it as customers do, kills a process half-way, and checks every outcome.

    python examples/shop/demo.py [--broker URL] [--output FOLDER]

Exit code 0: everything came out as it should, and nothing is left running. 1: something did not; 130: it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from email import message_from_bytes, policy
from http.client import HTTPException
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

HERE = Path(__file__).resolve().parent
SALES = HERE / "input" / "orders.csv"
PICTURE = HERE / "input" / "bay.png"
MARK = ".made-by-celeriac-demo"
PASSWORD = "only for the demo"
PATIENCE_SECONDS = 60.0


class Trouble(Exception):
    """Something without which the demo cannot go on."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="A Django shop with background work, checked at the end.")
    parser.add_argument("--broker", default="", help="redis://…, postgresql://…, amqp://… (default: the project's own database, SQLite)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where its files go (default: demo-output)")
    options = parser.parse_args()
    try:
        shop = Shop(make_folder(options.output.resolve()), options.broker)
        try:
            return run(shop)
        finally:
            shop.close()
    except KeyboardInterrupt:
        print("\nStopped; all that was started has been stopped too.", file=sys.stderr)
        return 130
    except (Trouble, AssertionError, OSError) as trouble:
        print(f"\ndemo: {trouble}", file=sys.stderr)
        return 1


def run(shop: Shop) -> int:
    shop.set_up()
    say(f"A Django shop. Broker: {shop.broker_shown}; its files are in {shop.data.name}/.")
    shop.start_server()
    visit = Visit(shop)
    say("Customers come, though no worker is running yet:")
    visit.all()
    shop.start("beat", "celeriac", "beat", "-l", "info")
    shop.start("worker of the fast queue", "celeriac", "worker", "-n", "fast@%h", "-Q", "fast", "-c", "1", "-l", "info")
    shop.start("worker of the slow queue", "celeriac", "worker", "-n", "slow@%h", "-Q", "slow", "-c", "1", "-l", "info")
    say("What came of it:")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("import with progress", visit.check_import),
        ("registration", visit.check_registration),
        ("order", visit.check_order),
        ("refused card", visit.check_refused_card),
        ("priority", visit.check_priority),
        ("thumbnails", visit.check_thumbnails),
        ("report", visit.check_report),
        ("time limit, WebSocket", visit.check_prices),
        ("REST API", visit.check_api),
        ("schedules", visit.check_schedules),
        ("admin", visit.check_admin),
        ("the end", shop.check_end),
    ]
    wrong = 0
    for name, check in checks:
        try:
            verdict, words = "ok   ", check()
        except (AssertionError, OSError, LookupError, ValueError) as problem:
            verdict, words = "WRONG", f"{type(problem).__name__}: {problem}"
            wrong += 1
        print(f"  {verdict} {name:<22} {words}", flush=True)
    if wrong:
        print(f"\ndemo: {wrong} of {len(checks)} did not come out as they should; the logs in {shop.data} tell more.", file=sys.stderr)
    return 1 if wrong else 0


# -- the processes -----------------------------------------------------------------------------------------------------------


class Shop:
    """The project in a folder of this run, and its processes."""

    def __init__(self, data: Path, broker: str) -> None:
        self.data, self.broker = data, broker
        self.broker_shown = re.sub(r"//.*@", "//…@", broker) or "the project's own database"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.namespace = f"shop-demo-{secrets.token_hex(4)}"
        self.starting = self.interrupted = False
        for signum in (signal.SIGINT, signal.SIGTERM):  # a stop by a supervisor cleans up as Ctrl-C does
            signal.signal(signum, self._interrupt)
        os.environ.update(SHOP_DATA=str(data), DJANGO_SETTINGS_MODULE="config.settings", PYTHONUNBUFFERED="1", **self._broker_settings())

    def _broker_settings(self) -> dict[str, str]:
        for name in [name for name in os.environ if name.startswith(("CELERY_", "SHOP_"))]:
            del os.environ[name]
        options: dict[str, dict[str, str]] = {
            "sqlite": {},
            "redis": {"key_prefix": f"{self.namespace}:"},
            "postgresql": {"schema": self.namespace.replace("-", "_")},
            "amqp": {"name_prefix": f"{self.namespace}."},
        }
        if not self.broker:
            return {}
        scheme = urlsplit(self.broker).scheme
        if scheme not in options:
            raise Trouble(
                f"The demo runs on redis://, postgresql://, amqp:// and sqlite://, not on {scheme}://. Without BROKER it needs none."
            )
        settings = {"CELERY_BROKER_URL": self.broker, "CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps(options[scheme])}
        if scheme == "amqp":  # it keeps no results and no schedules
            settings["CELERY_RESULT_BACKEND"] = f"sqlite:///{self.data / 'results.db'}"
        return settings

    def _interrupt(self, *_: Any) -> None:
        """Not between the birth of a process and the line that remembers it: nobody would end it."""
        self.interrupted = True
        if not self.starting:
            raise KeyboardInterrupt

    def set_up(self) -> None:
        import django

        sys.path.insert(0, str(HERE))
        django.setup()
        from django.core.management import call_command

        os.environ["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
        try:
            call_command("migrate", verbosity=0)
            call_command("createsuperuser", interactive=False, username="root", email="root@shop.example", verbosity=0)
        except Exception as problem:
            raise Trouble(f"The database could not be made: {problem}") from problem
        from celeriac import current_app as app
        from celeriac.exceptions import CeleriacError

        try:
            app.broker.depth(["fast", "slow"])
        except CeleriacError as problem:
            raise Trouble(str(problem)) from problem

    def start_server(self) -> None:
        command = ["-m", "uvicorn", "config.asgi:application", "--host", "127.0.0.1", "--port", "0", "--lifespan", "off"]
        command += ["--timeout-graceful-shutdown", "3"]  # open streams and sockets would hold it up
        log = self._start("server", command, "running on http")
        found = re.search(r"running on (http://[\d.:]+)", log)
        assert found is not None
        self.url = found[1]
        say(f"$ uvicorn config.asgi:application      at {self.url}")

    def start(self, name: str, *arguments: str) -> None:
        """`manage.py …`, as it is typed in a shell."""
        say("$ manage.py " + " ".join(arguments))
        self._start(name, ["manage.py", *arguments], "ready." if "worker" in arguments else "Starting...")

    def _start(self, name: str, command: list[str], ready: str) -> str:
        path = self.data / f"{name.replace(' ', '-')}.log"
        self.starting = True
        with path.open("wb") as log:
            process = self.processes[name] = subprocess.Popen(
                [sys.executable, *command], cwd=HERE, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.starting = False
        if self.interrupted:
            raise KeyboardInterrupt

        def is_ready() -> bool:
            if process.poll() is not None:
                raise Trouble(f"The {name} ended with exit code {process.returncode}: {path.read_text(errors='replace')[-1000:]}")
            return ready in path.read_text(errors="replace")

        try:
            until(is_ready, f"the {name} is ready")
        except AssertionError as problem:
            raise Trouble(str(problem)) from None
        return path.read_text(errors="replace")

    def group_of(self, name: str) -> int:
        return self.processes[name].pid

    def check_end(self) -> str:
        from celeriac import current_app as app

        def busy() -> dict[str, Any]:
            return {name: depth for name, depth in app.broker.depth(["fast", "slow"]).items() if depth.ready or depth.leased or depth.dead}

        until(lambda: not busy(), "the queues are empty")
        codes = self.stop()
        # uvicorn ends as it should, and then by the signal.
        assert {code for name, code in codes.items() if (name, code) != ("server", -signal.SIGTERM)} <= {0}, codes
        return "queues empty, no dead letters, and all processes ended when asked to"

    def stop(self) -> dict[str, int]:
        """Asks all to end, then makes them; returns the exit codes of those that were asked."""
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        codes = {}
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for name, process in self.processes.items():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            codes[name] = process.wait()
        self.processes.clear()
        signal.signal(signal.SIGINT, impatient)
        return codes

    def close(self) -> None:
        self.stop()
        with suppress(Exception):  # it may be away
            self._empty_broker()

    def _empty_broker(self) -> None:
        scheme = urlsplit(self.broker).scheme
        if scheme == "redis":
            import redis

            with redis.Redis.from_url(self.broker) as client:
                for key in client.scan_iter(f"{self.namespace}:*", count=1000):
                    client.delete(key)
        elif scheme == "postgresql":
            import psycopg

            with psycopg.connect(self.broker, autocommit=True) as connection:
                connection.execute(f"DROP SCHEMA IF EXISTS {self.namespace.replace('-', '_')} CASCADE")


# -- the visitors ------------------------------------------------------------------------------------------------------------


class Browser:
    """Somebody with cookies."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.jar = CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.jar))

    def open(self, path: str, data: bytes | None = None, **headers: str) -> Any:
        url = path if path.startswith("http") else self.url + path
        try:
            return self.opener.open(urllib.request.Request(url, data, headers), timeout=PATIENCE_SECONDS)
        except urllib.error.HTTPError as error:
            raise OSError(f"{path} answered {error.code}: {error.read()[:300]!r}") from None

    def get(self, path: str) -> str:
        with self.open(path) as answer:
            return str(answer.read().decode())

    def post(self, path: str, fields: dict[str, Any] | None = None, file: Path | None = None) -> str:
        """Sends a form of the page that was seen last."""
        body, kind = urlencode(fields or {}, doseq=True).encode(), "application/x-www-form-urlencoded"
        if file is not None:
            edge = secrets.token_hex(8)
            head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            body, kind = head.encode() + file.read_bytes() + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"
        headers = {"Content-Type": kind, "X-CSRFToken": self.cookie("csrftoken"), "Referer": self.url + path}
        with self.open(path, body, **headers) as answer:
            return str(answer.read().decode())

    def cookie(self, name: str) -> str:
        return next((cookie.value or "" for cookie in self.jar if cookie.name == name), "")


class Visit:
    """What the customers do, and what must come of it."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.asha, self.bikram = Browser(shop.url), Browser(shop.url)
        self.percents: list[int] = []
        self.import_end: dict[str, Any] = {}
        self.prices: list[dict[str, Any]] = []

    def all(self) -> None:
        started = time.monotonic()
        for browser, name in ((self.asha, "asha"), (self.bikram, "bikram")):
            browser.get("/")
            password = {"password1": PASSWORD, "password2": PASSWORD}
            browser.post("/register/", {"username": name, "email": f"{name}@shop.example", **password})
        order = {"product": 1, "quantity": 3}
        self.order = self.place(self.asha, {**order, "card": "4000 0000 0000"})
        self.refused = self.place(self.bikram, {**order, "card": "0000 0000 0000"})
        self.express = self.place(self.bikram, {**order, "card": "4000 0000 0000", "express": "on"})
        self.thumbnails = self.task_on(self.asha.post("/pictures/", file=PICTURE))
        page = self.asha.post("/imports/", file=SALES)
        self.sales_import = self.task_on(page)
        self.follow(page)
        self.report = self.task_on(self.asha.post("/reports/"))
        self.watch_prices(self.asha.post("/prices/"))
        with self.asha.open("/api/add/", b'{"x": 2, "y": 3}', **{"Content-Type": "application/json", **self.csrf(self.asha)}) as answer:
            assert answer.status == 202
            self.sum = json.load(answer)["url"]
        spent = time.monotonic() - started
        print(f"  2 registrations, 3 orders, a picture, {SALES.name}, a report, prices and a sum were accepted in {spent:.1f} s")

    def csrf(self, browser: Browser) -> dict[str, str]:
        return {"X-CSRFToken": browser.cookie("csrftoken"), "Referer": browser.url}

    def place(self, browser: Browser, fields: dict[str, Any]) -> tuple[int, str]:
        page = browser.post("/orders/", fields)
        found = re.search(r"<h1>Order (\d+)</h1>", page)
        assert found is not None, page
        return int(found[1]), self.task_on(page)

    def task_on(self, page: str) -> str:
        """The id of the task whose progress the page shows."""
        from celeriac.django.keys import task_of

        found = re.search(r'status="/celeriac/status/([^"]+)"', page)
        task_id = found and task_of(found[1], None)
        if task_id is None:
            raise Trouble(f"The page shows no progress: {page}")
        return task_id

    def follow(self, page: str) -> None:
        """Server-sent events, as the progress bar reads them: when a stream ends before the task, the next one begins."""
        found = re.search(r'events="([^"]+)"', page)
        assert found is not None
        path = found[1]

        def read() -> None:
            while not self.import_end:
                with suppress(OSError, HTTPException), Browser(self.shop.url).open(path) as stream:
                    for line in stream:
                        if line.startswith(b"data: "):
                            self.heard(json.loads(line[6:]))
                time.sleep(0.5)

        threading.Thread(target=read, daemon=True).start()

    def heard(self, status: dict[str, Any]) -> None:
        if status["ready"]:
            self.import_end = status
        elif status["percent"] is not None:
            self.percents.append(status["percent"])

    def watch_prices(self, page: str) -> None:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        found = re.search(r'data-key="([^"]+)"', page)
        assert found is not None
        url = f"{self.shop.url.replace('http', 'ws')}/celeriac/{found[1]}"
        socket = connect(url, proxy=None, origin=self.shop.url)  # type: ignore[arg-type]

        def read() -> None:
            with suppress(ConnectionClosed), socket:
                while True:
                    self.prices.append(json.loads(socket.recv()))

        threading.Thread(target=read, daemon=True).start()

    # -- what must come of it --------------------------------------------------------------------------------------------

    def check_import(self) -> str:
        """Half-way, the process that does it is killed."""
        from django.db.models import Sum
        from shop.models import Sale

        from celeriac.result import AsyncResult

        def seen() -> Any:
            result: AsyncResult[Any] = AsyncResult(self.sales_import)
            info = result.info
            return result.ready() or (isinstance(info, dict) and 2 * info.get("done", 0) >= info.get("total", 1) and info["pid"])

        pid = until(seen, "the import is half-way")
        killed = "done before a process could be killed"
        if pid is not True:
            assert os.getpgid(pid) == self.shop.group_of("worker of the slow queue"), f"process {pid} is not ours"
            os.kill(pid, signal.SIGKILL)
            killed = f"process {pid} killed half-way (kill -9), and done anew"
        until(lambda: self.import_end, "the import has ended")
        assert self.import_end["state"] == "SUCCESS", self.import_end
        with SALES.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        expected = sum((int(row["quantity"]) * Decimal(row["unit_price"]) for row in rows), Decimal())
        amount = Sale.objects.aggregate(amount=Sum("amount"))["amount"]
        assert Sale.objects.count() == len(rows) and amount == expected, (Sale.objects.count(), amount, expected)
        assert self.percents, "no step was told"
        return f"{killed}: {len(rows):,} rows, {amount:,.2f} in all; {len(self.percents)} steps told as server-sent events"

    def check_registration(self) -> str:
        until(lambda: len(self.mails_to("Welcome")) >= 2, "two welcome mails")
        assert sorted(self.mails_to("Welcome")) == ["asha@shop.example", "bikram@shop.example"]
        return "2 welcome mails, each once"

    def check_order(self) -> str:
        for browser, (number, task_id) in ((self.asha, self.order), (self.bikram, self.express)):
            until(lambda number=number: self.of_order(number)["status"] != "new", "the order is processed")  # type: ignore[misc]
            found = self.of_order(number)
            assert (found["status"], found["tries"]) == ("paid", 2), found
            assert ": Paid" in browser.get(f"/orders/{number}/{task_id}/")
        until(lambda: len(self.mails_to("Receipt")) >= 2, "two receipts")
        return "the bank was away at the first try; paid at the second, and a receipt sent"

    def check_refused_card(self) -> str:
        number, task_id = self.refused
        until(lambda: self.of_order(number)["status"] == "failed", "the order has failed")
        found = self.of_order(number)
        assert found["tries"] == 1, found
        assert found["problem"] in self.bikram.get(f"/orders/{number}/{task_id}/")
        until(lambda: self.mails_to(f"Order {number} has failed"), "the manager is told")
        assert self.mails_to(f"Order {number} has failed") == ["manager@shop.example"]
        return "no retry; the error callback told the manager"

    def check_priority(self) -> str:
        from celeriac.result import AsyncResult

        if self.shop.broker.startswith("amqp"):
            return "not asked: RabbitMQ's quorum queues have none"
        first, second = (AsyncResult(task_id).attempts[0].started_at for _, task_id in (self.express, self.order))
        assert first < second, f"express at {first}, the other at {second}"
        return "the express order, which came last, was processed first"

    def check_thumbnails(self) -> str:
        from PIL import Image
        from shop.models import Picture

        names = until(lambda: Picture.objects.get().thumbnails, "the thumbnails are made")
        sizes = []
        for name in names:
            with self.asha.open(f"/media/{name}") as answer, Image.open(io.BytesIO(answer.read())) as image:
                sizes.append(max(image.size))
        assert sizes == [64, 128, 256], sizes
        return f"a picture became {len(sizes)}, {' '.join(str(size) for size in sizes)} wide"

    def check_report(self) -> str:
        from shop.models import Report

        report = until(lambda: Report.objects.exclude(text="").first(), "the report is made")
        assert report.tries == 3, report.tries
        assert report.text in self.asha.get(f"/reports/{report.pk}/") and "NPR" in report.text
        return f"no exchange rate twice; at the third try {len(report.text.splitlines())} lines"

    def check_prices(self) -> str:
        until(lambda: self.prices and self.prices[-1]["ready"], "the prices have come")
        answers = self.prices[-1]["result"]
        assert answers and "Chandra" not in answers, self.prices[-1]
        return f"one supplier sleeps; after 2 s the answers of {len(answers)} others came, in {len(self.prices)} messages"

    def check_api(self) -> str:
        answer = until(lambda: self._summed(), "the sum is there")
        assert answer["result"] == 5, answer
        return "202 and an address to poll; there, 2 + 3 = 5"

    def _summed(self) -> Any:
        answer = json.loads(self.asha.get(self.sum))
        return answer if answer["state"] == "SUCCESS" else None

    def check_schedules(self) -> str:
        """What the settings plan is run now; and a schedule is added in the admin, which beat obeys at once."""
        from django.utils import timezone
        from shop.models import Customer, Order, Product

        from celeriac import current_app as app
        from celeriac.django.models import PeriodicTask

        Customer.objects.filter(user__username="asha").update(birthday=timezone.localdate().replace(year=2000))
        Order.objects.filter(pk=self.refused[0]).update(created_at=timezone.now() - timezone.timedelta(days=31))
        for name in ("nightly clean-up", "weekly digest", "inventory", "birthdays"):
            app.schedules.run(name)
        until(lambda: self.mails_to("Happy birthday") and self.mails_to("The week"), "birthday mails and digest")
        assert set(self.mails_to("Happy birthday")) == {"asha@shop.example"}
        until(lambda: not Order.objects.filter(pk=self.refused[0]).exists(), "the old order is forgotten")
        root = self.root()
        add = {"_save": "Save"}
        root.post("/admin/celeriac/intervalschedule/add/", {"every": 1, "period": "seconds", **add})
        entry = {"name": "stock", "task": "shop.tasks.sync_inventory", "interval": 1, "enabled": "on", "args": "[]", "kwargs": "{}"}
        root.post("/admin/celeriac/periodictask/add/", {**entry, "headers": "{}", "misfire": "once", "overlap": "allow", **add})
        until(lambda: [line for line in app.schedules.history("stock") if line.outcome == "sent"][1:], "beat has sent it twice")
        until(lambda: all(product.stock > 100 for product in Product.objects.all()), "the stock is counted")
        added = PeriodicTask.objects.get(name="stock")
        root.post("/admin/celeriac/periodictask/", {"action": "disable", "_selected_action": added.pk})
        added.refresh_from_db()
        assert not added.enabled
        return "4 of the settings; and one that was added in the admin was sent each second, until it was switched off there"

    def check_admin(self) -> str:
        if self.shop.broker.startswith("amqp"):
            return "schedules only: results are in a file here, since RabbitMQ's joins need one"
        page = self.root().get(f"/admin/celeriac/taskresult/?q={self.refused[1]}")
        assert "CardRefused" in page and "process_order" in page
        return "the failed order is found, with its reason"

    def root(self) -> Browser:
        root = Browser(self.shop.url)
        root.get("/admin/login/")
        root.post("/admin/login/?next=/admin/", {"username": "root", "password": PASSWORD})
        return root

    def of_order(self, number: int) -> dict[str, Any]:
        from shop.models import Order

        found: dict[str, Any] = Order.objects.values("status", "problem", "tries").get(pk=number)
        return found

    def mails_to(self, subject: str) -> list[str]:
        """To whom mails went whose subject begins so."""
        found = []
        for path in sorted((self.shop.data / "mails").glob("*.log")):
            for text in path.read_bytes().split(b"-" * 79 + b"\n"):
                mail = message_from_bytes(text, policy=policy.default)
                if str(mail["Subject"]).startswith(subject):
                    found.append(str(mail["To"]))
        return found


# -- helpers -----------------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.05)


def say(text: str) -> None:
    print(text, flush=True)


def make_folder(output: Path) -> Path:
    """A fresh one; what is there already is removed only when an earlier demo made it."""
    if output.exists():
        if not (output / MARK).exists():
            raise Trouble(f"{output} exists and was not made by this demo; name another folder with --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARK).touch()
    return output


if __name__ == "__main__":
    sys.exit(main())
