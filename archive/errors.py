"""What can go wrong, each with the exit status the command line gives it.

Raised anywhere, caught once: by the root command (``archive/app/cli.py``), which prints the words
on one line and exits with ``exit_code``, and by the receiver, which answers with the status that
the table in ``scp/network/answers.py`` has for the class. The words say what was wrong and what to
do; those of errors that a peer can provoke carry no patient data.
"""

from __future__ import annotations


class PlainpacsError(Exception):
    """Something plainpacs cannot go on from. Exit status 3: cannot work."""

    exit_code = 3


class NotAnArchive(PlainpacsError):
    """The folder is missing, or has no (readable) marker of a format we know."""


class UnsuitableFileSystem(PlainpacsError):
    """The file system lacks what the promises rest on: hard links or directory fsync."""


class InUse(PlainpacsError):
    """Another process holds what this one needs: a node, the indexer's place, a port."""


class BadSettings(PlainpacsError):
    """A flag, variable or configuration key that is unknown or has an impossible value."""

    exit_code = 2


class BadQuery(PlainpacsError):
    """A search term that cannot be meant."""

    exit_code = 2


class QueryTooLarge(BadQuery):
    """It has more values, or a longer pattern, than are compared. The words have none of them."""


class NoMatch(PlainpacsError):
    """Nothing in the archive is what was asked for, or more than the one that was asked for."""

    exit_code = 1


class NotALinkTree(PlainpacsError):
    """The folder holds something else than links of this archive, or may not hold them."""


class RefusedInstance(PlainpacsError):
    """An instance that cannot be filed; nothing of it is in the tree."""


class UnreadableDataSet(RefusedInstance):
    """The data set cannot be read, or lacks what filing needs."""


class NotDICOM(UnreadableDataSet):
    """Not an instance at all: another kind of file, or a DICOMDIR. ``prefixed``: it has the prefix
    of a Part 10 file all the same."""

    prefixed = False


class InvalidUID(RefusedInstance):
    """A UID that may not become a name in the tree."""

    def __init__(self, keyword: str, why: str) -> None:
        super().__init__(f"{keyword} {why}")
        self.keyword = keyword


class DataSetMismatch(RefusedInstance):
    """The data set names another SOP Class or Instance than the C-STORE request did."""


class ForbiddenInstance(RefusedInstance):
    """The instance, or its series or study, was removed with the word that it never come back."""


class StorageUnavailable(PlainpacsError):
    """The tree cannot take the instance now: no space, read-only, gone, or an I/O error."""


class OutOfSpace(StorageUnavailable):
    """There is no room for the instance: the disk or quota is full, or down to its reserve."""
