"""A small project. Each test adds settings of its own, as JSON in the folder."""

import json
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = "of a test"
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "celeriac.django", "books"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
LANGUAGE_CODE = "en"
ROOT_URLCONF = "config.urls"
CELERY_BROKER_URL = f"sqlite:///{BASE_DIR / 'queue.db'}"
CELERY_BROKER_PUBLISH_TIMEOUT = 40  # the machine of the tests may be busy

globals().update(json.loads((BASE_DIR / "settings.json").read_text()))
