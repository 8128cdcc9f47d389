"""A Django project for `bench.django`: either side's, with nothing but what it needs."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

_place = urlsplit(os.environ["BENCH_BROKER"])
_ours = os.environ["BENCH_DJANGO"] == "celeriac"

SECRET_KEY = "of a bench"
DEBUG = False
USE_TZ = True
INSTALLED_APPS = ["celeriac.django"] if _ours else ["django_tasks", "django_tasks_db"]
TASKS = {"default": {"BACKEND": "celeriac.django.TasksBackend" if _ours else "django_tasks_db.DatabaseBackend"}}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _place.path.strip("/"),
        "USER": _place.username,
        "HOST": _place.hostname,
        "PORT": _place.port,
        "CONN_MAX_AGE": None,
    }
}
CELERY_IMPORTS = ["bench.peers.django_site"]
