"""`path("celeriac/", include("celeriac.django.urls"))`: how far tasks are, for whoever may see it."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "celeriac"
urlpatterns = [
    path("status/<path:key>", views.status, name="status"),
    path("events/<path:key>", views.events, name="events"),
]
