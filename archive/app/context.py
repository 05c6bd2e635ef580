"""What every command of the command line is given: which archive is meant."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from plainpacs.archive.tree.root import find_archive

# But those that are given ROOT.
_COMMAND_LINE = re.compile(r"`plainpacs (?!init\b|serve\b)[^`]*`")


@dataclass(slots=True)
class Context:
    """Passed to commands by ``click.pass_obj``; ``archive`` is the value of ``-a``, if given."""

    archive: str | None = None

    def archive_path(self, root: str | None = None) -> str:
        """The folder of the archive meant: ``root`` (a command's argument), else ``-a``, else
        $PLAINPACS_ARCHIVE, else the nearest parent with a marker. Raises NotAnArchive."""
        return find_archive(root or self.archive)

    def hint(self, text: str) -> str:
        """``text`` with every command line in it, `plainpacs COMMAND …`, meaning the archive that
        ``-a`` names: pasted without, it might mean another."""
        if self.archive is None:
            return text
        named = f" -a {shlex.quote(self.archive)}`"
        return _COMMAND_LINE.sub(lambda match: match[0][:-1] + named, text)
