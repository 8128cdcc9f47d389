"""What docs/django.md shows works: in a project that has an app `orders`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.django_project import MakeDjangoProject

PAGE = Path(__file__).parents[2] / "docs" / "django.md"
MODELS = """
from django.db import models

class Order(models.Model):
    number = models.CharField(max_length=20)
"""
CALL = """
from django.test import RequestFactory
from celeriac.result import AsyncResult
from orders.models import Order
from orders.views import pay
import config.asgi
from django.urls import reverse
assert reverse("celeriac:status", args=["k"]) == "/celeriac/status/k"
order = Order.objects.create(number="A1")
answer = pay(RequestFactory().post("/"), order.pk)
seen = AsyncResult(json.loads(answer.content)["task"]).get(timeout=40)
"""


def test_python_of_the_page_runs(make_site: MakeDjangoProject) -> None:
    site = make_site(migrated=False)
    (site.directory / "orders").mkdir()
    (site.directory / "orders" / "__init__.py").touch()
    (site.directory / "orders" / "models.py").write_text(MODELS)
    settings = site.directory / "config" / "settings.py"
    written, last_line = settings.read_text().rsplit("\n\n", 1)
    program = []
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        match = re.match(r"# ([\w/]+\.py)\n", block)
        if match is None:
            program.append(block)
        elif match[1] == "settings.py":
            written += "\n\n" + block
        else:
            (site.directory / match[1]).write_text(block)
    assert "celeriac.django" in written and len(program) == 1
    written = written.replace('"celeriac.django", "books"', '"books", "orders", "django.contrib.sessions"')  # the page adds the line itself
    settings.write_text(f"{written}\nCELERY_BROKER_URL = f\"sqlite:///{{BASE_DIR / 'queue.db'}}\"\n\n{last_line}")
    site.run("migrate", "--run-syncdb", "-v", "0")
    site.worker("-c", "1")
    seen = site.python(CALL + "\n".join(program) + "\nprint(json.dumps([seen, list(PeriodicTask.objects.values_list('name', flat=True))]))")
    assert seen == ["order 1 is on its way", ["clean up"]]
