"""What happens when Django starts: there is an app, and workers know how to treat Django's connections."""

from __future__ import annotations

from django.apps import AppConfig


class CeleriacConfig(AppConfig):
    name = "celeriac.django"
    label = "celeriac"
    verbose_name = "Celeriac"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, database, outbox, results, schedulers, workers
        from .project import ensure_app, even_priorities

        app = ensure_app()
        even_priorities()
        database.install(app)
        outbox.install(app)
        results.install(app)
        schedulers.install()
        workers.prepare()
        checks.register()
