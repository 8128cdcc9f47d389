"""Tasks of django.tasks, or of its backport. Imported only where settings name a backend of it."""

import os

try:
    from django.tasks import task
    from django.tasks.signals import task_finished, task_started
except ImportError:
    from django_tasks import task
    from django_tasks.signals import task_finished, task_started

from django.conf import settings
from django.dispatch import receiver

from .models import Book


@task
def add(a: int, b: int) -> int:
    return a + b


@task(takes_context=True, priority=50, queue_name="fast")
def tell(context, *args, **kwargs):
    result = context.task_result
    return {"attempt": context.attempt, "id": result.id, "args": result.args, "kwargs": result.kwargs, "status": str(result.status)}


@task
async def count() -> int:
    return await Book.objects.acount()


@task
def fail() -> None:
    raise ValueError("on purpose")


@task
def odd() -> object:
    return object()


@task(takes_context=True)
def die_once(context):
    mark = settings.BASE_DIR / "died"
    if not mark.exists():
        mark.touch()
        os._exit(9)
    return "alive"


def write(word: str, task_result) -> None:
    with (settings.BASE_DIR / "signals").open("a") as file:
        file.write(f"{word} {task_result.task.name} {task_result.status}\n")


@receiver(task_started)
def started(sender, task_result, **kwargs):
    write("started", task_result)


@receiver(task_finished)
def finished(sender, task_result, **kwargs):
    write("finished", task_result)
