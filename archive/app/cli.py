"""The root command. It knows the other packages' commands by name only and loads one when called,
so that a read command starts fast."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from plainpacs.archive.app.completion import complete_commands, complete_uids
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import PlainpacsError

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("plainpacs.archive.commands.init:init", "Make an archive."),
    "serve": ("plainpacs.scp.commands.serve:serve", "Receive instances and index them."),
    "web": ("plainpacs.scp.commands.web:web", "Show the archive in a browser, and DICOMweb."),
    "ls": ("plainpacs.indexer.commands.ls:ls", "List studies."),
    "show": ("plainpacs.indexer.commands.show:show", "Show one study."),
    "path": ("plainpacs.indexer.commands.path:path", "Where a study, series or instance lies."),
    "status": ("plainpacs.indexer.commands.status:status", "What is there and what runs."),
    "stats": ("plainpacs.indexer.commands.stats:stats", "Count by month, modality or sender."),
    "import": (
        "plainpacs.indexer.commands.import_:import_",
        "Take files, folders or an archive in.",
    ),
    "links": ("plainpacs.indexer.commands.links:links", "Keep a tree of links named for people."),
    "sheet": ("plainpacs.indexer.commands.sheet:sheet", "A study's images on one page."),
    "rm": ("plainpacs.indexer.commands.rm:rm", "Remove, into the trash or for good."),
    "restore": ("plainpacs.indexer.commands.restore:restore", "Bring back what was removed."),
    "forbidden": ("plainpacs.indexer.commands.forbidden:forbidden", "What is refused for good."),
    "verify": ("plainpacs.indexer.commands.verify:verify", "Look for damage; changes nothing."),
    "repair": ("plainpacs.indexer.commands.repair:repair", "Mend what verify finds."),
    "export": ("plainpacs.indexer.commands.export:export", "Copy out: a folder, a zip, for OHIF."),
    "conflicts": (
        "plainpacs.indexer.commands.conflicts:conflicts_",
        "What is kept aside, and deciding it.",
    ),
    "correct": (
        "plainpacs.indexer.commands.correct:correct",
        "Correct patient and study attributes.",
    ),
    "echo": ("plainpacs.scp.commands.echo:echo", "Ask a node whether it is there."),
    "find": ("plainpacs.scp.commands.find:find", "Search another archive."),
    "pull": ("plainpacs.scp.commands.pull:pull", "Fetch from another archive what is missing."),
    "send": ("plainpacs.scp.commands.send:send", "Send instances elsewhere."),
    "nodes": ("plainpacs.scp.commands.nodes:nodes", "The applications elsewhere that have names."),
    "audit": ("plainpacs.indexer.commands.audit:audit", "Who stored, read, removed, was refused."),
    "hooks": ("plainpacs.indexer.commands.hooks:hooks", "Commands of yours: waiting or failed."),
    "index": (
        "plainpacs.indexer.commands.index:index",
        "Keep the indexes (`serve` does it itself).",
    ),
    "completion": ("plainpacs.archive.app.completion:completion", "Complete commands in a shell."),
    "reindex": (
        "plainpacs.indexer.commands.reindex:reindex",
        "Find changes now, or rebuild all indexes.",
    ),
}


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
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


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
@click.version_option(package_name="plainpacs", message="%(package)s %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    """A DICOM archive made of plain files.

    Receives instances over the network, files them in a folder tree that needs no program to
    read, and lists what is there. `plainpacs COMMAND --help` has an example of each.
    """
    ctx.ensure_object(Context)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: list[str] | None = None) -> Any:
    """The console script. Exit status: 0 done, 1 findings or no match, 2 usage, 3 cannot work."""
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
