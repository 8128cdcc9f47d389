"""Celeriac on SQLite beside Celery on Redis, in one run on one machine: `python bench/run.py`. See README.md."""
