"""Sends the shop's work, starts a worker, watches, pulls a plug, and checks every outcome.

    python -m examples.demo [--output FOLDER]

Exit code 0: every job came out as it should, and nothing is left running. Otherwise 1, and the table says what was wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import mailbox
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .screen import Screen, table

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
PICTURES = sorted((HERE / "input" / "pictures").glob("*.png"))
ORDERS = HERE / "input" / "orders.csv"
RATES = {"EUR": 1, "NPR": 163.4, "USD": 1.09}
DEADLINE_SECONDS = 90.0
MARK = ".made-by-celeriac-demo"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Real background work, checked at the end.")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where the files go (default: demo-output)")
    output = parser.parse_args().output.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by a supervisor cleans up as Ctrl-C does
    try:
        make_folder(output)
        return run(output)
    except KeyboardInterrupt:
        print("\nStopped; the worker has been stopped too.", file=sys.stderr)
        return 130
    except Trouble as trouble:
        print(f"\ndemo: {trouble}", file=sys.stderr)
        return 1


class Trouble(Exception):
    """Something without which the demo cannot go on."""


def run(output: Path) -> int:
    if find_spec("PIL") is None:
        raise Trouble("The thumbnails need Pillow: pip install pillow (`make demo` does so by itself).")
    os.environ["CELERY_BROKER_URL"] = f"sqlite:///{output / 'queue.db'}"
    os.environ["CELERY_RESULT_BACKEND"] = os.environ["CELERY_BROKER_URL"]
    from .tasks import app

    print("A shop's background work: no server, one SQLite file, one worker with three processes.\n")
    try:
        with flaky_service() as service:
            jobs = send_all(app, output, service)
            with worker(output) as running:
                watch(jobs, running.process, output)
            jobs.worker_exit, jobs.left_behind = running.process.returncode, running.left_behind
            return report(app, jobs, output)
    finally:
        app.close()


# -- what is sent ------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One line on the screen: a call, or several of a kind."""

    name: str
    results: list[Any]
    check: Callable[[Job], str]
    """Says in a few words what came out; raises AssertionError when it is not what it should be."""
    note: str = ""


@dataclass
class Jobs:
    lines: list[Job]
    poster: Any
    eta: datetime
    service: Service
    killed: list[int] = field(default_factory=list)
    working_since: datetime | None = None
    """When the first task was seen to run: before that, the worker was starting."""
    worker_exit: int | None = None
    left_behind: bool = False


def send_all(app: Any, output: Path, service: Service) -> Jobs:
    """Every call returns at once, though no worker is running yet: the engine holds them."""
    from . import tasks

    outbox = str(output / "outbox.mbox")
    thumbs = output / "thumbnails"
    thumbs.mkdir()
    whole = [picture for picture in PICTURES if picture.stem != "broken"]
    friends = top_customers(10)
    eta = datetime.now(UTC) + timedelta(seconds=5)

    started = time.perf_counter()
    poster = tasks.poster.delay([str(picture) for picture in whole], str(output / "poster.png"))
    small = [tasks.thumbnail.delay(str(picture), str(thumbs)) for picture in whole]
    broken = tasks.thumbnail.delay(str(HERE / "input" / "pictures" / "broken.png"), str(thumbs))
    sales = tasks.sales_report.apply_async((str(ORDERS), str(output / "sales.md")), link=tasks.mail_report.s("boss@shop.example", outbox))
    mails = [tasks.send_mail.delay(address_of(name), "Thank you", f"Dear {name}, …", outbox) for name in friends]
    rates = tasks.exchange_rates.delay(service.url, str(output / "rates.json"))
    reminder = tasks.send_mail.apply_async(("boss@shop.example", "Reminder", "Water the celeriac.", outbox), eta=eta)
    letter = tasks.send_mail.apply_async(("everybody@example.org", "Newsletter", "Never mind.", outbox), countdown=4)
    letter.revoke()
    spent = time.perf_counter() - started

    calls = len(small) + len(mails) + 6
    print(f"{calls} calls accepted in {spent * 1000:.1f} ms, and one of them revoked; no worker is running yet.")
    jobs = Jobs(lines=[], poster=poster, eta=eta, service=service)
    jobs.lines = [
        Job("thumbnails", small, lambda job: check_thumbnails(job, whole)),
        Job("a damaged picture", [broken], check_broken),
        Job("sales report", [sales], lambda job: check_sales(job, output)),
        Job("mails to customers", mails, lambda job: check_mails(job, output, friends)),
        Job("exchange rates", [rates], lambda job: check_rates(job, jobs, output), note="from a service that fails twice"),
        Job("reminder, with an ETA", [reminder], lambda job: check_reminder(job, jobs), note=f"due at {eta.astimezone():%H:%M:%S}"),
        Job("poster", [poster], lambda job: check_poster(job, jobs, len(whole)), note="will be killed half-way"),
        Job("newsletter", [letter], check_newsletter, note="revoked before it ran"),
    ]
    return jobs


# -- the worker ----------------------------------------------------------------------------------------------------------


@dataclass
class RunningWorker:
    process: subprocess.Popen[bytes]
    left_behind: bool = False
    """When it was told to end, something of it did not."""


@contextmanager
def worker(output: Path) -> Iterator[RunningWorker]:
    """A worker as one starts it in a shell, in a session of its own, so that all its processes can be found and none survives us."""
    command = [sys.executable, "-m", "celeriac", "-A", "examples.demo.tasks", "worker", "-c", "3", "-n", "demo@%h", "-l", "INFO"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", "no_proxy": "127.0.0.1"}
    with (output / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=output, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    print(f"$ celeriac -A examples.demo.tasks worker -c 3      (process {process.pid}, log in {output.name}/worker.log)\n")
    running = RunningWorker(process)
    try:
        yield running
    finally:
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        if process.poll() is None:
            process.terminate()  # warm: finish what is running, then exit
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        deadline = time.monotonic() + 3
        while process.poll() is not None and group_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.left_behind = group_is_alive(process.pid)
        if running.left_behind:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        signal.signal(signal.SIGINT, impatient)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def watch(jobs: Jobs, running: subprocess.Popen[bytes], output: Path) -> None:
    """Shows the lines until all jobs are ready; half-way through the poster, kills the process that makes it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with Screen() as screen:
        while True:
            screen.show([line_of(job) for job in jobs.lines])
            if all(is_finished(result) for job in jobs.lines for result in job.results):
                return
            if running.poll() is not None:
                last = (output / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Trouble(f"The worker ended by itself, with exit code {running.returncode}; worker.log ends with: {' '.join(last)}")
            if time.monotonic() > deadline:
                waiting = [job.name for job in jobs.lines if not all(result.ready() for result in job.results)]
                raise Trouble(
                    f"After {DEADLINE_SECONDS:g} s these had not finished: {', '.join(waiting)}. See worker.log in the output folder."
                )
            if jobs.working_since is None and any(result.state != "PENDING" for job in jobs.lines[:-1] for result in job.results):
                jobs.working_since = datetime.now(UTC)
            pull_the_plug(jobs, running, screen)
            time.sleep(0.05)


def is_finished(result: Any) -> bool:
    """The task is, and so are the tasks that it sent."""
    return result.ready() and all(is_finished(child) for child in result.children or ())


def pull_the_plug(jobs: Jobs, running: subprocess.Popen[bytes], screen: Screen) -> None:
    if jobs.killed or jobs.poster.state != "PROGRESS":
        return
    progress = jobs.poster.info
    if not isinstance(progress, dict) or not progress["total"] // 2 <= progress["done"] < progress["total"]:
        return
    pid = int(progress["pid"])
    if os.getpgid(pid) != running.pid:
        raise Trouble(f"Process {pid} says that it makes the poster, but is not of the worker that this demo started.")
    os.kill(pid, signal.SIGKILL)
    jobs.killed.append(pid)
    jobs.lines[6].note = f"process {pid} was killed at picture {progress['done']}"
    screen.say(f"kill -9 {pid}: the process that was making the poster, at picture {progress['done']} of {progress['total']}")


def line_of(job: Job) -> tuple[str, str, float, str]:
    """Name, state, share done, words."""
    if len(job.results) > 1:
        done = sum(result.ready() for result in job.results)
        state = "SUCCESS" if done == len(job.results) else "STARTED" if done else "PENDING"
        return job.name, state, done / len(job.results), f"{done} of {len(job.results)}"
    result = job.results[0]
    state, info = result.state, result.info
    if state == "PROGRESS" and isinstance(info, dict):
        return job.name, state, info["done"] / info["total"], f"{info['done']} of {info['total']} {info['what']}"
    if state in ("RETRY", "FAILURE"):
        return job.name, state, float(state == "FAILURE"), f"{type(info).__name__}: {info}"
    return job.name, state, float(result.ready()), job.note


# -- what must have come out -------------------------------------------------------------------------------------------------


def report(app: Any, jobs: Jobs, output: Path) -> int:
    rows, complaints = [], list[str]()
    for job in jobs.lines:
        try:
            words, verdict = job.check(job), "ok"
        except Exception as error:
            words, verdict = "see below", "WRONG"
            complaints.append(f"{job.name}: {type(error).__name__}: {error}")
        states = Counter(result.state for result in job.results)
        rows.append((job.name, ", ".join(f"{n} × {state}" if n > 1 else state for state, n in states.items()), words, verdict))
    for name, words, fine in after_all(app, jobs):
        rows.append((name, "", words, "ok" if fine else "WRONG"))
        if not fine:
            complaints.append(f"{name}: {words}")
    print(table(("job", "state", "what happened", ""), rows))
    print(f"\nThe files are in {output}")
    if complaints:
        print(f"\ndemo: {len(complaints)} of {len(rows)} did not come out as they should; worker.log there tells more.", file=sys.stderr)
        print("\n".join(complaints), file=sys.stderr)
    return 1 if complaints else 0


def after_all(app: Any, jobs: Jobs) -> Iterator[tuple[str, str, bool]]:
    depths = app.broker.depth()
    left = {name: depth for name, depth in depths.items() if depth.ready or depth.scheduled or depth.leased or depth.dead}
    yield "the queues", f"not empty: {left}" if left else "empty, and no dead letters", not left
    words = "ended with exit code 0 when asked to" if jobs.worker_exit == 0 else f"ended with exit code {jobs.worker_exit}"
    yield (
        "the worker",
        words + (", but processes of it still run" if jobs.left_behind else ""),
        jobs.worker_exit == 0 and not jobs.left_behind,
    )


def check_thumbnails(job: Job, pictures: list[Path]) -> str:
    from PIL import Image

    for picture, result in zip(pictures, job.results, strict=True):
        made = result.get(timeout=1)
        with Image.open(picture) as expected, Image.open(made["file"]) as got:
            expected.thumbnail((120, 120))
            assert got.size == expected.size == (made["width"], made["height"]), f"{picture.name} became {got.size}"
            assert got.tobytes() == expected.tobytes(), f"{picture.name} became another picture"
    return f"{len(pictures)} pictures of 120×80, each as it should look"


def check_broken(job: Job) -> str:
    error = job.results[0].get(timeout=1, propagate=False)
    assert job.results[0].state == "FAILURE", job.results[0].state
    assert "identify image" in str(error) or "truncated" in str(error), f"failed with {error!r}"
    return f"failed with its reason: {type(error).__name__}"


def check_sales(job: Job, output: Path) -> str:
    with ORDERS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    total = sum((int(row["quantity"]) * Decimal(row["unit_price"]) for row in rows), Decimal())
    made = job.results[0].get(timeout=1)
    assert made["orders"] == len(rows), f"{made['orders']} orders instead of {len(rows)}"
    assert isinstance(made["revenue"], Decimal), f"the revenue came back as {type(made['revenue']).__name__}"
    assert made["revenue"] == total, f"{made['revenue']} instead of {total}"
    text = (output / "sales.md").read_text(encoding="utf-8")
    amounts = [
        Decimal(line.split("|")[2].replace(",", "")) for line in text.splitlines() if line.startswith("| ") and "country" not in line
    ]
    assert sum(amounts) == total, f"the amounts in sales.md add up to {sum(amounts)}, not {total}"
    return f"{len(rows):,} orders, {total:,.2f} in all; recomputed, and equal"


def check_mails(job: Job, output: Path, friends: list[str]) -> str:
    """Also for the other jobs that send mail: the mailbox holds exactly what was asked for, each once."""
    expected = Counter((address_of(name), "Thank you") for name in friends)
    expected.update([("boss@shop.example", "Your sales report"), ("boss@shop.example", "Reminder")])
    deadline = time.monotonic() + 1
    while True:
        box = mailbox.mbox(output / "outbox.mbox")
        found = Counter((str(mail["To"]), str(mail["Subject"])) for mail in box)
        box.close()
        if found == expected or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert found == expected, f"missing: {list(expected - found)}, unexpected: {list(found - expected)}"
    return f"{found.total()} mails in outbox.mbox, each once, with the report and the reminder"


def check_rates(job: Job, jobs: Jobs, output: Path) -> str:
    made = job.results[0].get(timeout=1)
    assert {name: float(rate) for name, rate in made["rates"].items()} == RATES, made["rates"]
    assert json.loads((output / "rates.json").read_text()).keys() == RATES.keys()
    assert made["tries"] == 3 == jobs.service.asked, f"{made['tries']} tries, and the service was asked {jobs.service.asked} times"
    return "two failures, two retries, then the rates"


def check_reminder(job: Job, jobs: Jobs) -> str:
    sent = job.results[0].get(timeout=1)
    assert sent >= jobs.eta, f"sent {(jobs.eta - sent).total_seconds():.3f} s before its time"
    late = (sent - max(jobs.eta, jobs.working_since or jobs.eta)).total_seconds()
    assert late < 1, f"sent {late:.3f} s after its time"
    return f"sent {late * 1000:.0f} ms after its time"


def check_poster(job: Job, jobs: Jobs, pictures: int) -> str:
    from PIL import Image

    made = job.results[0].get(timeout=1)
    assert jobs.killed, "the process that made it could not be killed in time"
    assert made["pid"] not in jobs.killed, "the killed process finished it"
    with Image.open(made["file"]) as image:
        image.load()
        assert image.size == (made["width"], made["height"]) == (640, 480), f"it measures {image.size}"
    assert made["pictures"] == pictures
    return f"process {jobs.killed[0]} killed half-way; process {made['pid']} made it anew"


def check_newsletter(job: Job) -> str:
    assert job.results[0].state == "REVOKED", f"its state is {job.results[0].state}"
    return "revoked before its time; never sent"


def address_of(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"{plain.lower().replace(' ', '.')}@example.org"


def top_customers(count: int) -> list[str]:
    with ORDERS.open(newline="", encoding="utf-8") as file:
        spent = Counter[str]()
        for row in csv.DictReader(file):
            spent[row["customer"]] += int(row["quantity"])
    return [name for name, _ in spent.most_common(count)]


# -- a web service that is not always well --------------------------------------------------------------------------------------


@dataclass
class Service:
    url: str
    asked: int = 0


@contextmanager
def flaky_service() -> Iterator[Service]:
    """On this machine only. Answers 503 twice, then the rates."""
    service = Service("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked += 1
            if service.asked <= 2:
                self.send_error(503, "Come back later")
                return
            body = json.dumps(RATES).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}/rates"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def make_folder(output: Path) -> None:
    """A fresh one; what is there already is removed only when an earlier demo made it."""
    if output.exists():
        if not (output / MARK).exists():
            raise Trouble(f"{output} exists and was not made by this demo; name another folder with --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARK).touch()


if __name__ == "__main__":
    sys.exit(main())
