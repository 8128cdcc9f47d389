"""The admin's pages: results, with what to do about them, and schedules, with what they sent and will send. Times are in the project's time zone, a preview's in the schedule's own."""

from __future__ import annotations

from ast import literal_eval
from datetime import UTC, datetime
from typing import Any

import msgspec
from django import forms
from django.contrib import admin, messages
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from ..core import states
from ..core.errors import CeleriacError
from .models import ClockedSchedule, CrontabSchedule, GroupResult, IntervalSchedule, PeriodicTask, SolarSchedule, TaskResult
from .project import ensure_app
from .schedulers import tell


class _Style:
    css = {"all": ["celeriac/admin.css"]}


class _Kept(admin.ModelAdmin):
    """Rows that workers write: people look at them and delete them."""

    Media = _Style

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)


@admin.register(TaskResult)
class TaskResultAdmin(_Kept):
    list_display = ("task_name", "state", "date_done", "took", "arguments", "outcome", "worker", "queue", "retries", "task_id")
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
        return format_html('<span class="celeriac-state celeriac-{}">{}</span>', row.status, row.status)

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
            (
                (
                    one["state"],
                    _time(datetime.fromisoformat(one["started_at"])),
                    one["worker"],
                    f"{one['runtime_seconds']:.3g}",
                    one.get("error", ""),
                )
                for one in tries
            ),
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
    return format_html('<pre class="celeriac-text">{}</pre>', text)


# -- schedules ---------------------------------------------------------------------------------------------------------------


class _TaskName(forms.TextInput):
    """A text, with the names of the known tasks to choose from."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        app = ensure_app()
        app.import_modules()
        names = format_html_join("", '<option value="{}">', ((task,) for task in sorted(app.tasks) if not task.startswith("celery.")))
        field = super().render(name, value, {**(attrs or {}), "list": "celeriac-tasks", "size": 60}, renderer)
        return format_html('{}<datalist id="celeriac-tasks">{}</datalist>', field, names)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(admin.ModelAdmin):
    list_display = ("name", "task", "when", "enabled", "next_time", "last_run_at", "total_run_count")
    list_filter = ("enabled", "one_off", "task", "start_time", "last_run_at")
    search_fields = ("name", "task", "description", "args", "kwargs")
    list_select_related = ("interval", "crontab", "solar", "clocked")
    actions = ("enable", "disable", "run_now")
    readonly_fields = ("last_run_at", "total_run_count", "next_times", "history")
    save_as = True
    Media = _Style
    fieldsets = (
        (None, {"fields": ("name", "task", "enabled", "description")}),
        (
            _("When: one of these"),
            {"fields": ("interval", "crontab", "solar", "clocked", "one_off", "start_time", "expires", "next_times")},
        ),
        (_("Call"), {"fields": ("args", "kwargs")}),
        (_("Policies"), {"fields": ("misfire", "overlap", "expire_seconds")}),
        (_("Way"), {"classes": ("collapse",), "fields": ("queue", "priority", "exchange", "routing_key", "headers")}),
        (_("What was"), {"fields": ("last_run_at", "total_run_count", "history")}),
    )

    def formfield_for_dbfield(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        if db_field.name == "task":
            kwargs["widget"] = _TaskName
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    @admin.display(description=_("when"))
    def when(self, row: PeriodicTask) -> str:
        try:
            return str(row.schedule.describe())
        except (ValueError, TypeError, AttributeError):
            return str(row.scheduler)

    @admin.display(description=_("next"))
    def next_time(self, row: PeriodicTask) -> str:
        return next(iter(self._preview(row, 1)), "-") if row.enabled else "-"

    @admin.display(description=_("next times"))
    def next_times(self, row: PeriodicTask) -> SafeString | str:
        found = self._preview(row, 10) if row.pk and row.enabled else []
        return _block("\n".join(found)) if found else "-"

    @admin.display(description=_("ledger"))
    def history(self, row: PeriodicTask) -> SafeString | str:
        try:
            lines = ensure_app().schedules.history(row.name, limit=20) if row.pk else []
        except CeleriacError as problem:
            return str(problem)
        if not lines:
            return "-"
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{} s</td><td>{}</td><td>{}</td></tr>",
            (
                (
                    _time(datetime.fromtimestamp(line.planned_at, UTC)),
                    line.outcome,
                    f"{line.late_seconds:.1f}",
                    line.message_id or "",
                    line.why,
                )
                for line in lines
            ),
        )
        heads = format_html_join(
            "", "<th>{}</th>", ((head,) for head in (_("planned"), _("what became of it"), _("late"), _("task id"), _("why")))
        )
        return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", heads, rows)

    def _preview(self, row: PeriodicTask, count: int) -> list[str]:
        try:
            found = ensure_app().schedules.preview(row.name, count)
            return [f"{one.planned_at:%Y-%m-%d %H:%M:%S %Z}{f'  ({one.remark})' if one.remark else ''}" for one in found]
        except (CeleriacError, ValueError, LookupError) as problem:
            return [str(problem)]

    # -- actions ---------------------------------------------------------------------------------------------------------

    @admin.action(description=_("Enable the selected periodic tasks"), permissions=["change"])
    def enable(self, request: Any, queryset: Any) -> None:
        self._switch(request, queryset, True)

    @admin.action(description=_("Disable the selected periodic tasks"), permissions=["change"])
    def disable(self, request: Any, queryset: Any) -> None:
        self._switch(request, queryset, False)

    def _switch(self, request: Any, queryset: Any, enabled: bool) -> None:
        for row in queryset:
            row.enabled = enabled
            row.save()
        self.message_user(request, ngettext("%d periodic task changed.", "%d periodic tasks changed.", len(queryset)) % len(queryset))

    @admin.action(description=_("Run the selected periodic tasks now"), permissions=["change"])
    def run_now(self, request: Any, queryset: Any) -> None:
        """Beside its schedule, also when it is disabled."""
        app = ensure_app()
        ids = []
        for row in queryset:
            try:
                tell(app, [row])
                ids.append(app.schedules.run(row.name, by=f"by {request.user}").id)
            except (CeleriacError, ValueError, LookupError, RuntimeError) as problem:
                self.message_user(request, f"{row.name}: {problem}", messages.ERROR)
        if ids:
            text = ngettext("%d task sent: %s", "%d tasks sent: %s", len(ids)) % (len(ids), ", ".join(ids))
            self.message_user(request, text, messages.SUCCESS)


@admin.register(IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule)
class ScheduleAdmin(admin.ModelAdmin):
    list_display = ("__str__", "in_words")

    @admin.display(description=_("in words"))
    def in_words(self, row: Any) -> str:
        return str(row.schedule.describe())


def _time(moment: datetime) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"
