import os

from django.db import connection
from django.utils import timezone, translation

from celeriac import shared_task

from .models import Book


@shared_task
def title(pk: int) -> str:
    return Book.objects.get(pk=pk).title


@shared_task
async def atitle(pk: int) -> str:
    return (await Book.objects.aget(pk=pk)).title


@shared_task
def buy(pk: int) -> int:
    from django.db.models import F

    Book.objects.filter(pk=pk).update(copies=F("copies") + 1)
    return os.getpid()


@shared_task
def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@shared_task
def speak(language: str, zone: str) -> list:
    found = [translation.get_language(), timezone.get_current_timezone_name()]
    translation.activate(language)
    timezone.activate(zone)
    return found


@shared_task
def join(parts: list) -> str:
    return "".join(parts)
