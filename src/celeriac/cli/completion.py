"""`celeriac completion`: the script that lets a shell complete commands, options and task names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .command import Command
from .session import Session


@click.command(
    cls=Command,
    epilog='\b\nExamples:\n  eval "$(celeriac completion bash)"                       in ~/.bashrc\n'
    '  eval "$(celeriac completion zsh)"                        in ~/.zshrc\n'
    "  celeriac completion fish > ~/.config/fish/completions/celeriac.fish",
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root().command
    session = ctx.find_object(Session)
    assert session is not None
    # Not `complete.source()`: it starts bash to learn its version, which tells nothing worth the wait.
    complete = kind(root, {}, "celeriac", "_CELERIAC_COMPLETE")
    session.say(complete.source_template % complete.source_vars())
