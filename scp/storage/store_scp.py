"""The seam between bytes that arrived and keeping them: ``store``, and ``LargeInstance``.

Before it lies the network, in whatever way it reads; behind it the archive. It knows nothing of
associations, and turns every error into a row of the table of answers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.store import Archive, Provenance, Spool, Stored
from plainpacs.archive.tree.identity import as_name
from plainpacs.scp.network.answers import RefusedSOPClass, StoreStatus, answer_for, comment_for
from plainpacs.scp.network.negotiation import is_storage

_LOG = logging.getLogger("plainpacs.scp")


class StoreRequest(NamedTuple):
    """What is known of an instance before its data set is read: the C-STORE command and context.

    ``sop_class`` and ``sop_instance`` are as the peer sent them, and may be anything.
    ``negotiated_class`` is the abstract syntax of the context it came on.
    """

    sop_class: str
    sop_instance: str
    negotiated_class: str
    transfer_syntax: str
    provenance: Provenance


class StoreAnswer(NamedTuple):
    """``stored`` is None when the answer is a failure; then ``error`` says why, for the log."""

    status: StoreStatus
    comment: str = ""
    remedy: str = ""
    stored: Stored | None = None
    error: BaseException | None = None


def store(
    archive: Archive,
    request: StoreRequest,
    data_set: memoryview | None,
    refused_sop_classes: Collection[str] = (),
) -> StoreAnswer:
    """Keeps an instance and says what to answer. Raises nothing that is an Exception.

    SUCCESS means stored durably, now or before; after any other answer nothing is in the tree,
    or, when the storage failed half-way, the whole instance is.
    """
    try:
        _check(request, refused_sop_classes)
        if not data_set:
            raise UnreadableDataSet("the request has no data set")
        stored = archive.store(
            data_set,
            request.transfer_syntax,
            request.provenance,
            sop_class=request.sop_class,
            sop_instance=request.sop_instance,
        )
    except Exception as error:
        return _failed(error)
    return StoreAnswer(StoreStatus.SUCCESS, stored=stored)


class LargeInstance:
    """An instance that is stored as it comes: a ``dimse.Spill``. Nothing here raises an Exception.

    What is refused early, or cannot be written, is taken and dropped; ``store`` says why.
    """

    def __init__(
        self, archive: Archive, request: StoreRequest, refused_sop_classes: Collection[str] = ()
    ) -> None:
        self.size = 0
        self._spool: Spool | None = None
        self._failure: StoreAnswer | None = None
        try:
            _check(request, refused_sop_classes)
            self._spool = archive.spool(
                request.transfer_syntax,
                request.provenance,
                sop_class=request.sop_class,
                sop_instance=request.sop_instance,
            )
        except Exception as error:
            self._failure = _failed(error)

    def write(self, piece: memoryview) -> None:
        self.size += len(piece)
        if self._spool is not None:
            try:
                self._spool.write(piece)
            except Exception as error:
                self._failure = _failed(error)
                self.discard()

    def store(self) -> StoreAnswer:
        """As ``store`` above."""
        if self._spool is None:
            assert self._failure is not None, "there is a spool, or a reason why not"
            return self._failure
        try:
            return StoreAnswer(StoreStatus.SUCCESS, stored=self._spool.store())
        except Exception as error:
            return _failed(error)

    def discard(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            try:
                spool.discard()
            except OSError as error:
                _LOG.warning("an unfinished file could not be removed: %s", error)


def _failed(error: Exception) -> StoreAnswer:
    # All of them, the unforeseen too, have a row: a peer that gets no answer sends for ever.
    row = answer_for(error)
    return StoreAnswer(row.status, comment_for(error), row.remedy, error=error)


def _check(request: StoreRequest, refused: Collection[str]) -> None:
    as_name("AffectedSOPClassUID", request.sop_class)
    as_name("AffectedSOPInstanceUID", request.sop_instance)
    if request.sop_class in refused:
        raise RefusedSOPClass("the SOP Class is refused by configuration")
    # Specialised classes may come on the context of their general one (PS3.4 B.3.1), but not
    # what would not have been accepted had it been proposed.
    if request.sop_class != request.negotiated_class and not is_storage(request.sop_class):
        raise RefusedSOPClass("the SOP Class is not one of storage")
