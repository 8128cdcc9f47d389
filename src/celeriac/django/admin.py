"""The admin's pages: results, with what to do about them."""

from __future__ import annotations

from ast import literal_eval
from typing import Any

import msgspec
from django.contrib import admin, messages
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from ..core import states
from ..core.errors import CeleriacError
from .models import GroupResult, TaskResult
from .project import ensure_app

_COLOURS = {
    states.SUCCESS: "#2e7d32",
    states.FAILURE: "#c62828",
    states.REVOKED: "#6d4c41",
    states.RETRY: "#b26a00",
    states.STARTED: "#1565c0",
}
"""White on each of them is readable, whatever the page's colours are."""


class _Kept(admin.ModelAdmin):
    """Rows that workers write: people look at them and delete them."""

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)


@admin.register(TaskResult)
class TaskResultAdmin(_Kept):
    list_display = ("task_name", "state", "arguments", "outcome", "took", "worker", "queue", "retries", "date_done", "task_id")
    list_display_links = ("task_name", "task_id")
    list_filter = ("status", "date_done", "task_name", "queue", "worker", "periodic_task_name")
    search_fields = ("task_id", "task_name", "task_args", "task_kwargs", "result", "traceback", "worker", "group_id", "root_id")
    date_hierarchy = "date_done"
    list_per_page = 50
    show_full_result_count = False
    actions = ("retry", "revoke")
    fieldsets = (
        (None, {"fields": ("task_name", "state", "task_id", "queue", "worker", "periodic_task_name")}),
        (_("Call"), {"fields": ("task_args", "task_kwargs")}),
        (_("Outcome"), {"fields": ("readable_result", "readable_traceback")}),
        (_("Tries"), {"fields": ("retries", "tries")}),
        (_("Times"), {"fields": ("date_created", "date_started", "date_done", "took")}),
        (_("Workflow"), {"classes": ("collapse",), "fields": ("root_id", "parent_id", "group_id", "children")}),
    )

    @admin.display(description=_("state"), ordering="status")
    def state(self, row: TaskResult) -> SafeString:
        colour = _COLOURS.get(row.status, "#546e7a")
        style = "background:{};color:#fff;padding:2px 8px;border-radius:10px;font-size:11px;white-space:nowrap"
        return format_html('<span style="' + style + '">{}</span>', colour, row.status)

    @admin.display(description=_("arguments"))
    def arguments(self, row: TaskResult) -> str:
        return _short(", ".join(part for part in ((row.task_args or "")[1:-1].rstrip(","), (row.task_kwargs or "")[1:-1]) if part))

    @admin.display(description=_("result"))
    def outcome(self, row: TaskResult) -> str:
        data = _json(row.result)
        if isinstance(data, dict) and "exc_type" in data:
            return _short(f"{data['exc_type']}: {pretty(data.get('exc_message'))}")
        return "" if data is None else _short(row.result or "")

    @admin.display(description=_("run time"))
    def took(self, row: TaskResult) -> str:
        tries = _json(row.attempts) or []
        return f"{tries[-1]['runtime_seconds']:.3g} s" if tries else ""

    @admin.display(description=_("result"))
    def readable_result(self, row: TaskResult) -> SafeString:
        return _block(pretty(_json(row.result)))

    @admin.display(description=_("traceback"))
    def readable_traceback(self, row: TaskResult) -> SafeString | str:
        return _block(row.traceback) if row.traceback else "-"

    @admin.display(description=_("children"))
    def children(self, row: TaskResult) -> SafeString | str:
        found = (_json(row.meta) or {}).get("children")
        return _block(pretty(found)) if found else "-"

    @admin.display(description=_("tries"))
    def tries(self, row: TaskResult) -> SafeString | str:
        tries = _json(row.attempts) or []
        if not tries:
            return "-"
        lines = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} s</td><td>{}</td></tr>",
            ((one["state"], one["started_at"], one["worker"], f"{one['runtime_seconds']:.3g}", one.get("error", "")) for one in tries),
        )
        heads = format_html_join(
            "", "<th>{}</th>", ((head,) for head in (_("state"), _("started"), _("worker"), _("run time"), _("error")))
        )
        return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", heads, lines)

    # -- actions ---------------------------------------------------------------------------------------------------------

    @admin.action(description=_("Run the selected tasks again"), permissions=["delete"])
    def retry(self, request: Any, queryset: Any) -> None:
        """A dead letter is put back as it was; of another, a new task is sent with the same arguments, where they can be read back."""
        app = ensure_app()
        again, unreadable = 0, []
        try:
            replayed = set(app.broker.replay([row.task_id for row in queryset]))
            again += len(replayed)
            for row in queryset:
                if row.task_id in replayed:
                    continue
                call = _call(row)
                if call is None:
                    unreadable.append(row.task_id)
                else:
                    app.send_task(row.task_name, *call, **({"queue": row.queue} if row.queue else {}))
                    again += 1
        except CeleriacError as problem:
            self.message_user(request, str(problem), messages.ERROR)
        if again:
            self.message_user(request, ngettext("%d task runs again.", "%d tasks run again.", again) % again, messages.SUCCESS)
        if unreadable:
            text = _("Their arguments are too long or no plain values, so they cannot be sent again from here: %s")
            self.message_user(request, text % ", ".join(unreadable), messages.WARNING)

    @admin.action(description=_("Revoke the selected tasks"), permissions=["delete"])
    def revoke(self, request: Any, queryset: Any) -> None:
        """They do not run (any more); what runs just now goes on."""
        ids = [row.task_id for row in queryset if row.status not in states.READY_STATES]
        try:
            if ids:
                ensure_app().control.revoke(ids)
        except CeleriacError as problem:
            self.message_user(request, str(problem), messages.ERROR)
            return
        self.message_user(request, ngettext("%d task is revoked.", "%d tasks are revoked.", len(ids)) % len(ids), messages.SUCCESS)


@admin.register(GroupResult)
class GroupResultAdmin(_Kept):
    list_display = ("group_id", "date_done", "members")
    search_fields = ("group_id",)
    date_hierarchy = "date_done"
    fields = ("group_id", "date_created", "date_done", "readable_result")

    @admin.display(description=_("members"))
    def members(self, row: GroupResult) -> int:
        tree = _json(row.result)
        return len(tree[1]) if isinstance(tree, list) and len(tree) == 2 and isinstance(tree[1], list) else 0

    @admin.display(description=_("result"))
    def readable_result(self, row: GroupResult) -> SafeString:
        return _block(pretty(_json(row.result)))


def _call(row: TaskResult) -> tuple[Any, Any] | None:
    """The arguments, read back from their text."""
    try:
        args, kwargs = literal_eval(row.task_args or "()"), literal_eval(row.task_kwargs or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return (args, kwargs) if row.task_name and isinstance(args, (list, tuple)) and isinstance(kwargs, dict) else None


def pretty(value: Any) -> str:
    """JSON for people."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _json(text: str | None) -> Any:
    try:
        return msgspec.json.decode(text or "null")
    except msgspec.DecodeError:
        return text


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _block(text: str) -> SafeString:
    return format_html('<pre style="white-space:pre-wrap;overflow-wrap:anywhere;margin:0">{}</pre>', text)
