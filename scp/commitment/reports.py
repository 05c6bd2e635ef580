"""Reports of storage commitment on associations of our own (PS3.4 J.3.3), by one thread.

It takes up what no association is at work on: finds the asker among the nodes of the settings,
looks at the instances, and tells it: at once, at every start, and after ever longer pauses of up to
an hour for a week. At once, because many modalities release the association right after they asked,
and listen for the report.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from pynetdicom.presentation import build_context

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.identifier_writing import to_pydicom
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import BadSettings, PlainpacsError
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import open_root
from plainpacs.scp.commitment import requests
from plainpacs.scp.commitment.check import PutOff
from plainpacs.scp.commitment.requests import Claim, Transaction
from plainpacs.scp.commitment.service import SOP_CLASS, SOP_INSTANCE, Report, our_title
from plainpacs.scp.network import remote_aes
from plainpacs.scp.network.connection import Stopping
from plainpacs.scp.network.dimse import ProtocolError
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.reader import ConnectionLost, Limits, PeerTimeout
from plainpacs.scp.network.requestor import NoAssociation, Node, Requestor
from plainpacs.scp.receiver.statistics import Caller

_LOG = logging.getLogger("plainpacs.scp")

_LOOK_SECONDS = 2.0
_OURS_SECONDS = 5.0
"""For so long nobody but the association itself begins with a request."""
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0
_ANSWER_SECONDS = 60.0
_KEPT_SECONDS = 7 * 24 * 3600.0
_SYNTAXES = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
_TRANSIENT = (ProtocolError, ConnectionLost, PeerTimeout, Ended, OSError, PlainpacsError)


class Reporter:
    """Works from ``start`` to ``stop`` on the requests kept in ``archive``."""

    def __init__(self, archive: Archive, settings: Settings) -> None:
        self._archive = archive
        self._settings = settings
        # Readable once its other end is closed.
        self._stopping, self._stop = os.pipe()
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._silent: dict[str, tuple[float, float]] = {}
        """AE titles that could not be reported to: until when nothing is tried there (monotonic),
        and for how long."""
        self._seen: dict[str, str] = {}
        """The AE title of each request, so that none is read again while nothing is tried."""
        self._fault = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when it is at work on nothing any more. Once; also when not started."""
        self._stops.set()
        os.close(self._stop)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._stopping)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            try:
                self._round()
                self._fault = ""
            except (OSError, PlainpacsError) as error:
                words = getattr(error, "strerror", None) or str(error)
                if words != self._fault:
                    _LOG.warning("commitments cannot be looked after: %s", words)
                self._fault = words
            except Exception:
                _LOG.exception("a defect of plainpacs")
            stopping = self._stops.wait(_LOOK_SECONDS)

    def _round(self) -> None:
        """Tries each request whose asker can be tried."""
        root = open_root(self._archive.root)
        try:
            waiting = requests.names(root)
            self._seen = {name: self._seen[name] for name in waiting if name in self._seen}
            for name in waiting:
                if self._stops.is_set():
                    return
                if self._is_silent(self._seen.get(name)):
                    continue
                claim = requests.claim(root, name)
                if claim is None:
                    continue
                try:
                    self._seen[name] = claim.transaction.calling_ae
                    self._try(claim)
                finally:
                    claim.release()
        finally:
            os.close(root)

    def _is_silent(self, title: str | None) -> bool:
        return title in self._silent and time.monotonic() < self._silent[title][0]

    def _try(self, claim: Claim) -> None:
        transaction = claim.transaction
        title, age = transaction.calling_ae, time.time() - transaction.asked
        if self._is_silent(title) or 0 <= age < _OURS_SECONDS:
            return
        if self._deliver(transaction):
            self._silent.pop(title, None)
            claim.done()
        elif not self._stops.is_set():
            before = self._silent.get(title, (0.0, _FIRST_PAUSE / 2))[1]
            pause = min(2 * before, _LONGEST_PAUSE)
            self._silent[title] = time.monotonic() + pause, pause
            if age > _KEPT_SECONDS:
                _LOG.error("commitment given up, of %s: %s", transaction.uid, _caller(transaction))
                claim.done()

    def _deliver(self, transaction: Transaction) -> bool:
        """Whether the asker has its report. Logs why not."""
        try:
            node = remote_aes.find(self._settings, transaction.calling_ae)
        except BadSettings as error:
            _LOG.warning("commitment not reported: %s: %s", _caller(transaction), error)
            return False
        if node is None:
            self._log_unknown(transaction)
            return False
        try:
            return self._tell(node, transaction)
        except (Stopping, PutOff):
            pass
        except NoAssociation as error:
            words = "commitment not reported: %s; it is tried again later"
            _LOG.warning(words, error)
        except _TRANSIENT as error:
            why = str(error) or type(error).__name__
            _LOG.warning("commitment not reported: %s: %s; it is tried again later", node, why)
        return False

    def _log_unknown(self, transaction: Transaction) -> None:
        title = transaction.calling_ae
        if title in self._silent:  # the log says so already
            return
        shown = title if title.isascii() and title.isprintable() else "?"
        _LOG.warning(
            "commitment waits: its asker is no node here: %s; flag to add it: --nodes %s@HOST:PORT",
            _caller(transaction),
            shown,
        )

    def _tell(self, node: Node, transaction: Transaction) -> bool:
        settings = self._settings
        report = Report.of(self._archive.root, transaction, settings, self._stops.is_set)
        limits = Limits(settings.pdu_timeout, _ANSWER_SECONDS, settings.max_pdu)
        with Requestor.open(
            node,
            our_title(transaction, settings),
            [build_context(SOP_CLASS, _SYNTAXES)],
            limits=limits,
            # We ask for the association, and are the SCP all the same (PS3.4 J.3.3.1.3).
            sent_to_us=(SOP_CLASS,),
            stopping=self._stopping,
        ) as association:
            answer, _ = association.send_n_event_report(
                to_pydicom(report.information(settings)), report.event, SOP_CLASS, SOP_INSTANCE
            )
        report.log()
        if not report.taken(answer.Status, node):
            return False
        report.record(self._archive.audit)
        self._archive.audit.flush()
        return True


def _caller(transaction: Transaction) -> Caller:
    return Caller(transaction.peer, transaction.calling_ae, transaction.called_ae)
