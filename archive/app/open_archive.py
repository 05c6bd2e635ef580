"""From settings to an archive that is open for storing."""

from __future__ import annotations

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.store.free_space import Reserve
from plainpacs.archive.store.store import Archive


def open_archive(path: str, settings: Settings, *, expected: str | None = None) -> Archive:
    """The archive at ``path``, open as the ``settings`` say; ``expected`` as of ``Archive.open``.

    Raises what ``Archive.open`` raises.
    """
    use_defaults(settings.default_charset)
    return Archive.open(
        path,
        node=settings.node,
        sync=settings.sync == "on",
        digest=settings.digest,
        reserve=Reserve.parse(settings.reserve),
        on_conflict=settings.on_conflict,
        expected=expected,
    )
