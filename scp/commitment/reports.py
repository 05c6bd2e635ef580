"""Reports of storage commitment on associations of our own (PS3.4 J.3.3), by one thread.

It takes up what no association is at work on: finds the asker among the nodes of the settings,
looks at the instances, and tells it, again and again for a week.
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
        self._due: dict[str, float] = {}
        """When the requests are due that this process has seen, so that not each is read again."""
        self._silent: dict[str, float] = {}
        """AE titles that could not be reported to, and until when nothing is tried there."""
        self._strangers: set[str] = set()
        """The AE titles of which the log says that they are no nodes."""
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
        """Tries each request that is due."""
        root = open_root(self._archive.root)
        try:
            waiting = sorted(requests.names(root))
            self._due = {name: self._due[name] for name in waiting if name in self._due}
            for name in waiting:
                if self._stops.is_set():
                    return
                if self._due.get(name, 0.0) > time.time():
                    continue
                claim = requests.claim(root, name)
                if claim is None:
                    continue
                try:
                    self._try(claim)
                finally:
                    claim.release()
        finally:
            os.close(root)

    def _try(self, claim: Claim) -> None:
        transaction, now = claim.transaction, time.time()
        title, name = transaction.calling_ae, transaction.name
        # What was tried before this process was there is tried anew: the settings may have changed.
        due = transaction.due if name in self._due or not transaction.tries else 0.0
        due = max(due, self._silent.get(title, 0.0))
        is_old = now - transaction.asked > _KEPT_SECONDS
        if is_old and title in self._silent:
            _give_up(claim)
        elif due > now:
            self._due[name] = due
        elif self._deliver(transaction):
            self._silent.pop(title, None)
            claim.done()
        elif not self._stops.is_set():
            self._silent[title] = self._due[name] = claim.put_off().due
            if is_old:
                _give_up(claim)

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
        if title in self._strangers:
            return
        self._strangers.add(title)
        shown = title if title.isascii() and title.isprintable() else "?"
        _LOG.warning(
            "commitment waits: its asker is no node here: %s; flag to add it: --nodes %s@HOST:PORT",
            _caller(transaction),
            shown,
        )

    def _tell(self, node: Node, transaction: Transaction) -> bool:
        settings = self._settings
        report = Report.of(
            self._archive.root, transaction, settings, self._stops.is_set, thorough=True
        )
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


def _give_up(claim: Claim) -> None:
    transaction = claim.transaction
    _LOG.error("commitment given up, of %s: %s", transaction.uid, _caller(transaction))
    claim.done()


def _caller(transaction: Transaction) -> Caller:
    return Caller(transaction.peer, transaction.calling_ae, transaction.called_ae)
