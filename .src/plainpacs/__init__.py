"""plainpacs: a DICOM archive made of plain files.

``plainpacs.open`` reads an archive: see ``plainpacs.indexer.api``. The command line does not need
that, so it is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plainpacs.archive.errors import BadQuery, NoMatch, NotAnArchive, PlainpacsError
    from plainpacs.indexer.api import ArchiveReader, Instance, Results, Series, Study
    from plainpacs.indexer.api import open_archive as open  # noqa: A004 - as webbrowser, gzip do

__version__ = "0.1.0"

__all__ = [
    "ArchiveReader",
    "BadQuery",
    "Instance",
    "NoMatch",
    "NotAnArchive",
    "PlainpacsError",
    "Results",
    "Series",
    "Study",
    "open",
]

_ERRORS = {"BadQuery", "NoMatch", "NotAnArchive", "PlainpacsError"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "plainpacs.archive.errors" if name in _ERRORS else "plainpacs.indexer.api"
    found: object = getattr(import_module(module), "open_archive" if name == "open" else name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
