"""`manage.py check`: wrong or impossible settings are found before a worker starts."""

from __future__ import annotations

from typing import Any

from django.core import checks

from ..core.errors import ImproperlyConfigured


def register() -> None:
    checks.register(check_settings, "celeriac")


def check_settings(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    """Every problem that the app's settings have, and a remark for each that means nothing here."""
    from .project import ensure_app

    try:
        settings = ensure_app().settings
    except ImproperlyConfigured as error:
        return [checks.Error(problem, id="celeriac.E001") for problem in str(error).splitlines() if problem.strip()]
    return [checks.Info(remark, id="celeriac.I001") for remark in settings.remarks]
