"""What every command of the command line is given: which archive is meant."""

from __future__ import annotations

from dataclasses import dataclass

from plainpacs.archive.tree.root import find_archive


@dataclass(slots=True)
class Context:
    """Passed to commands by ``click.pass_obj``; ``archive`` is the value of ``-a``, if given."""

    archive: str | None = None

    def archive_path(self, root: str | None = None) -> str:
        """The folder of the archive meant: ``root`` (a command's argument), else ``-a``, else
        $PLAINPACS_ARCHIVE, else the nearest parent with a marker. Raises NotAnArchive."""
        return find_archive(root or self.archive)
