"""Exists for one import path that every Celery tutorial has: `celeriac.utils.log`."""
