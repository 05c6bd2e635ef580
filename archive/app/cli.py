"""The root command. It knows the other packages' commands by name only and loads one when called,
so that a read command starts fast."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from plainpacs.archive.app.completion import complete_commands, complete_uids
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import PlainpacsError

# fmt: off
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Receive": {
        "init": (
            "plainpacs.archive.commands.init:init",
            "Make an archive of a new or empty folder.",
        ),
        "serve": ("plainpacs.scp.commands.serve:serve", "Receive instances and index them."),
        "import": (
            "plainpacs.indexer.commands.import_:import_",
            "Import files, folders, zip files or another archive.",
        ),
    },
    "Look": {
        "ls": ("plainpacs.indexer.commands.ls:ls", "List studies."),
        "show": ("plainpacs.indexer.commands.show:show", "Show one study."),
        "path": (
            "plainpacs.indexer.commands.path:path",
            "Print where a study, series or instance lies.",
        ),
        "web": ("plainpacs.scp.commands.web:web", "Show the archive in a browser; DICOMweb."),
        "sheet": ("plainpacs.indexer.commands.sheet:sheet", "Draw a study's images on one page."),
        "links": (
            "plainpacs.indexer.commands.links:links",
            "Keep a tree of links named for people.",
        ),
        "stats": ("plainpacs.indexer.commands.stats:stats", "Count by month, modality or sender."),
        "status": ("plainpacs.indexer.commands.status:status", "Show what is there and what runs."),
        "audit": (
            "plainpacs.indexer.commands.audit:audit",
            "Show who stored, read, removed or was refused.",
        ),
    },
    "Keep": {
        "verify": ("plainpacs.indexer.commands.verify:verify", "Look for damage; change nothing."),
        "repair": ("plainpacs.indexer.commands.repair:repair", "Repair what verify finds."),
        "conflicts": (
            "plainpacs.indexer.commands.conflicts:conflicts_",
            "Show instances that are kept aside; decide.",
        ),
        "correct": (
            "plainpacs.indexer.commands.correct:correct",
            "Correct patient and study attributes.",
        ),
        "rm": ("plainpacs.indexer.commands.rm:rm", "Move to the trash, or erase."),
        "restore": ("plainpacs.indexer.commands.restore:restore", "Restore from the trash."),
        "forbidden": (
            "plainpacs.indexer.commands.forbidden:forbidden",
            "Show what is blocked; unblock it.",
        ),
        "retain": (
            "plainpacs.indexer.commands.retain:retain",
            "Remove studies that need not be kept longer.",
        ),
        "keep": (
            "plainpacs.indexer.commands.keep:keep",
            "Mark studies that retention leaves alone.",
        ),
        "hooks": (
            "plainpacs.indexer.commands.hooks:hooks",
            "Show pending and failed hook commands.",
        ),
        "index": (
            "plainpacs.indexer.commands.index:index",
            "Keep the indexes up to date (`serve` does it itself).",
        ),
        "reindex": (
            "plainpacs.indexer.commands.reindex:reindex",
            "Find changes now, or rebuild all indexes.",
        ),
    },
    "Exchange": {
        "export": (
            "plainpacs.indexer.commands.export:export",
            "Copy to a folder, a zip file, or for OHIF.",
        ),
        "echo": ("plainpacs.scp.commands.echo:echo", "Ask a node whether it is there."),
        "find": ("plainpacs.scp.commands.find:find", "Search another archive."),
        "pull": ("plainpacs.scp.commands.pull:pull", "Fetch from another archive what is missing."),
        "send": ("plainpacs.scp.commands.send:send", "Send instances to a node."),
        "nodes": ("plainpacs.scp.commands.nodes:nodes", "List the configured nodes."),
    },
    "Other": {
        "help": ("plainpacs.archive.app.cli:help_", "Show the help of a command."),
        "completion": (
            "plainpacs.archive.app.completion:completion",
            "Print a shell completion script.",
        ),
    },
}

# fmt: on
COMMANDS = {name: one for group in GROUPS.values() for name, one in group.items()}


INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


class _Commands(click.Group):
    """Loads a command when it is named; lists them all without loading any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        if not any(option.name == "archive" for option in command.params):
            command.params.append(_archive_option())
        complete_uids(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        words = [(name, words) for name, (_, words) in COMMANDS.items()]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return complete_commands(words, incomplete) + options

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, words) for name, (_, words) in group.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and args[0].isalpha():
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{_nearest(args[0])}'?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as error:
            # Asking the user, click makes an Abort of Ctrl-C, and of the end of the input.
            if isinstance(error, click.Abort) and isinstance(error.__context__, EOFError):
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)


def _nearest(name: str) -> str:
    return difflib.get_close_matches(name, COMMANDS, 1, 0.0)[0]


def _archive_option() -> click.Option:
    return click.Option(
        ["-a", "--archive"],
        metavar="DIR",
        expose_value=False,
        callback=_take_archive,
        help="The archive (else $PLAINPACS_ARCHIVE, else the nearest folder above with a marker).",
    )


def _take_archive(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Context).archive = value


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    params=[_archive_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with:  plainpacs serve --create ~/dicom",
)
@click.version_option(
    None, "-V", "--version", package_name="plainpacs", message="%(package)s %(version)s"
)
@click.pass_context
def root(ctx: click.Context) -> None:
    """A DICOM archive made of plain files.

    Receives instances over the network, files them in a folder tree that needs no program to
    read, and lists what is there. `plainpacs COMMAND --help` has an example of each.
    """
    ctx.ensure_object(Context)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(ctx: click.Context, /, command: str | None) -> None:
    """Show the help of COMMAND; without, all commands.

    Example:  plainpacs help import
    """
    above = ctx.find_root()
    if command is None:
        click.echo(above.get_help())
        return
    _, found, _ = root.resolve_command(above, [command])
    assert found
    click.echo(found.get_help(click.Context(found, info_name=command, parent=above)))


def main(arguments: list[str] | None = None) -> Any:
    """The console script. Exit status: 0 done, 1 findings or no match, 2 usage, 3 cannot work,
    130 interrupted."""
    context = Context()
    try:
        root(args=arguments, prog_name="plainpacs", obj=context)
    except PlainpacsError as error:
        # One line, whatever a file name or an operating system put into it.
        text = context.hint(str(error))
        words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        print(f"plainpacs: {words}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
