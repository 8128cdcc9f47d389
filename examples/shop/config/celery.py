"""As in every tutorial. It may be left out: with "celeriac.django" in INSTALLED_APPS, settings alone are enough."""

import os

from celeriac import Celeriac

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celeriac("config")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
