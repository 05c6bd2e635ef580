"""Completing what is typed in a shell: the command that sets it up, and UIDs.

click does the rest. Which studies there are only the indexer knows; it is asked by name, as the
root command asks for commands.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import PlainpacsError

_STUDIES = ("plainpacs.indexer.output.proposals", "studies")
_VARIABLE = "_PLAINPACS_COMPLETE"
_WHERE = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc",
    "fish": "~/.config/fish/completions/plainpacs.fish",
}


@click.command()
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(tuple(_WHERE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and study UIDs.

    \b
    bash:  echo 'eval "$(plainpacs completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(plainpacs completion zsh)"' >> ~/.zshrc
    fish:  plainpacs completion fish > ~/.config/fish/completions/plainpacs.fish

    Then, in a new shell, `plainpacs show 1.2.8` and the tab key list the newest studies whose UIDs
    start like that, of the archive that -a, $PLAINPACS_ARCHIVE or the folder tells.

    Example:  plainpacs completion bash
    """
    found = get_completion_class(shell)
    assert found is not None, "click knows these three"
    click.echo(found(ctx.find_root().command, {}, "plainpacs", _VARIABLE).source())


class StudyUID(click.types.StringParamType):
    """A UID, as text; that of a study is completed."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        context = ctx.find_object(Context) or Context()
        module, function = _STUDIES
        try:
            path = context.archive_path()
            studies: Callable[[str, str], Iterable[tuple[str, str]]] = getattr(
                importlib.import_module(module), function
            )
            return [CompletionItem(uid, help=words) for uid, words in studies(path, incomplete)]
        except (PlainpacsError, OSError):
            return []  # somebody is typing: there is nobody to tell


def complete_uids(command: click.Command) -> None:
    """Makes the arguments of ``command`` that are UIDs complete themselves."""
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.name in ("named", "what"):
            parameter.type = StudyUID()


def complete_commands(commands: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    """The commands, given with what they do, that start like ``incomplete``."""
    return [
        CompletionItem(name, help=words) for name, words in commands if name.startswith(incomplete)
    ]
