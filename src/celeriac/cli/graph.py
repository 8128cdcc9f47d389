"""`graph`: the picture of a workflow."""

from __future__ import annotations

from pathlib import Path

import click

from . import exits
from .command import Command
from .session import Session


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n  celeriac -A proj graph ID\n  celeriac -A proj graph ID --kind svg -o flow.svg\n\n\b\nExit codes: 0 drawn; 1 nothing is kept of it.",
)
@click.argument("flow_id")
@click.option("--kind", type=click.Choice(["text", "mermaid", "svg"]), default="text", show_default=True, help="What to draw.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there instead of printing it."
)
@click.pass_obj
def graph(session: Session, flow_id: str, kind: str, output: Path | None) -> None:
    """Draw the workflow FLOW_ID, each task with its state. It is the id of the result of a workflow that was sent by `celeriac.canvas.start`."""
    from ..canvas.flow import Flow

    flow = Flow.restore(flow_id, session.app)
    if flow is None:
        raise exits.CommandFailed(
            f"Nothing is kept of a workflow {flow_id!r}. Only those are that were sent by celeriac.canvas.start(), of up to 1000 tasks, until result_expires.",
            exits.FAILED,
        )
    picture = flow.graph(kind)
    if output is not None:
        output.write_text(picture + "\n", encoding="utf-8")
    elif session.json:
        session.say_json({"id": flow.id, "kind": kind, "picture": picture, "progress": flow.progress()})
    else:
        session.say(picture)
        if kind == "text":
            session.say(str(flow.progress()))
