"""What the shop does in the background. Nothing here knows that it is a demo: these are tasks as anybody writes them.

The worker is started with `celeriac -A examples.demo.tasks worker`; CELERY_BROKER_URL tells both sides where the engine is.
"""

from __future__ import annotations

import csv
import fcntl
import json
import mailbox
import os
import time
import urllib.error
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from celeriac import Celeriac, Task

app = Celeriac("demo")
app.conf.task_track_started = True


@app.task
def thumbnail(picture: str, folder: str, size: int = 120) -> dict[str, Any]:
    """Shrinks one picture. One that is damaged raises, and the task fails with Pillow's own words."""
    from PIL import Image

    source = Path(picture)
    target = Path(folder) / f"{source.stem}.thumb.png"
    with Image.open(source) as image:
        image.thumbnail((size, size))
        _replace(target, lambda path: image.save(path, format="PNG"))
        return {"file": str(target), "width": image.width, "height": image.height}


@app.task(bind=True)
def sales_report(self: Task[..., Any], orders: str, target: str) -> dict[str, Any]:
    """Adds up a CSV of orders by country. Amounts are Decimals, and arrive as Decimals with whoever reads the result."""
    with open(orders, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    revenue: defaultdict[str, Decimal] = defaultdict(Decimal)
    for number, row in enumerate(rows, start=1):
        revenue[row["country"]] += int(row["quantity"]) * Decimal(row["unit_price"])
        if number % 200 == 0:
            self.update_state(state="PROGRESS", meta={"done": number, "total": len(rows), "what": "orders"})
            time.sleep(0.05)  # so that a person can see it
    lines = [f"# Sales\n\n{len(rows)} orders.\n\n| country | revenue |\n|---|---|"]
    lines += [f"| {country} | {amount:,.2f} |" for country, amount in sorted(revenue.items(), key=lambda item: -item[1])]
    _replace(Path(target), lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return {"orders": len(rows), "revenue": sum(revenue.values(), Decimal()), "countries": len(revenue)}


@app.task(bind=True)
def send_mail(self: Task[..., Any], to: str, subject: str, text: str, outbox: str) -> datetime:
    """Puts a mail into the mailbox file, once: the task's id is the mail's, and a second run finds it there."""
    message_id = f"<{self.request.id}@shop.example>"
    with open(f"{outbox}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        box = mailbox.mbox(outbox)
        try:
            if all(mail["Message-ID"] != message_id for mail in box):
                box.add(_mail(message_id, to, subject, text))
                box.flush()
        finally:
            box.close()
    return datetime.now(UTC)


@app.task
def mail_report(report: dict[str, Any], to: str, outbox: str) -> str:
    """Linked to sales_report: its result is the first argument here."""
    text = f"{report['orders']} orders from {report['countries']} countries, {report['revenue']:,.2f} in all."
    mailed = send_mail.delay(to, "Your sales report", text, outbox)
    return mailed.id


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=1, retry_jitter=False, max_retries=5)
def exchange_rates(self: Task[..., Any], url: str, target: str) -> dict[str, Any]:
    """Asks a web service that is not always well. When it is not, the task is tried again: after 1 s, 2 s, 4 s …"""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            rates = json.load(answer, parse_float=Decimal)
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"the service answered {error.code} {error.reason}") from error
    _replace(Path(target), lambda path: path.write_text(json.dumps(rates, default=str, indent=2) + "\n"))
    return {"rates": rates, "tries": self.request.retries + 1}


@app.task(bind=True)
def poster(self: Task[..., Any], pictures: list[str], target: str, tile: int = 160, columns: int = 4) -> dict[str, Any]:
    """Puts all pictures on one sheet, a picture at a time. Somebody will pull the plug on it half-way."""
    from PIL import Image

    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * tile, rows * tile), (250, 250, 250))
    for number, picture in enumerate(pictures):
        with Image.open(picture) as image:
            image.thumbnail((tile - 8, tile - 8))
            left, top = (number % columns) * tile, (number // columns) * tile
            sheet.paste(image, (left + (tile - image.width) // 2, top + (tile - image.height) // 2))
        self.update_state(state="PROGRESS", meta={"done": number + 1, "total": len(pictures), "what": "pictures", "pid": os.getpid()})
        time.sleep(0.2)  # so that a person can see it
    _replace(Path(target), lambda path: sheet.save(path, format="PNG"))
    return {"file": target, "width": sheet.width, "height": sheet.height, "pictures": len(pictures), "pid": os.getpid()}


def _mail(message_id: str, to: str, subject: str, text: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"], mail["Message-ID"] = "shop@shop.example", to, subject, message_id
    mail["Date"] = datetime.now(UTC)
    mail.set_content(text)
    return mail


def _replace(target: Path, write: Any) -> None:
    """All of the file or none of it: a task may be killed while it writes, and runs again then."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    write(partial)
    os.replace(partial, target)
