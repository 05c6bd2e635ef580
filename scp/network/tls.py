"""TLS around a connection, by the profile of PS3.15 B.12 (BCP 195: RFC 8996 and RFC 9325).

TLS 1.3, or 1.2 with the four suites that RFC 9325 4.2 recommends; older versions, compression and
renegotiation are not spoken, no application protocol (ALPN) is named, and the port is TLS's alone.

The bytes go through memory: the connection beneath is the one that plain associations have, with
its deadlines and its heed of a stop, and what is sealed or opened here passes through it. Nothing
waits in this module but by that connection, and always in the association's own thread.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Sequence
from typing import Any

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import BadSettings
from plainpacs.scp.network.connection import Connection
from plainpacs.scp.network.reader import ABORT_BY_USER, PDU

_SUITES = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "@SECLEVEL=2",  # RSA keys and DH groups of 2048 bits or more, no SHA-1 (RFC 9325 4.5)
    )
)
_SEALED_AT_ONCE = 1 << 16


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What handshakes are made with; None when no TLS is asked for. Raises BadSettings."""
    if not settings.tls_cert:
        for name in ("tls_key", "tls_ca"):
            if getattr(settings, name) and not (name == "tls_ca" and _is_client(settings)):
                raise BadSettings(f"{_flag(name)} is given without --tls-cert: TLS would be off")
        if settings.tls_verify == "on":
            raise BadSettings("--tls-verify is given without --tls-cert: TLS would be off")
        return None
    if settings.tls_verify == "on" and not settings.tls_ca:
        raise BadSettings("--tls-verify needs --tls-ca: the certificates of who is to be trusted")
    context = _profile(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    # An association lives long enough not to need resumption. (Of TLS 1.2 tickets are left on:
    # without, OpenSSL keeps 6 KB for each session, of the last 20,000.)
    context.num_tickets = 0
    _load_certificate(context, settings.tls_cert, settings.tls_key or settings.tls_cert)
    if settings.tls_ca:
        _trust(context, settings.tls_ca)
        required = settings.tls_verify == "on"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_context(settings: Settings, *, any_name: bool = False) -> ssl.SSLContext:
    """What handshakes of our own asking are made with. Raises BadSettings.

    The peer's certificate has to be by ``tls_ca``, else by one that the system trusts; and to name
    its host (RFC 9325 4.3), unless ``any_name``. Ours, if we have one, is shown to who asks for it.
    """
    context = _profile(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = not any_name
    if settings.tls_cert:
        _load_certificate(context, settings.tls_cert, settings.tls_key or settings.tls_cert)
    if settings.tls_ca:
        _trust(context, settings.tls_ca)
    else:
        context.load_default_certs()
    return context


def _is_client(settings: Settings) -> bool:
    """Whether certificates are needed for associations of our own asking."""
    return any("/tls" in node for node in settings.nodes)


def _profile(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise BadSettings(f"--tls-ca {path}: {_why(error)}") from None
    # What the file names is trusted, be it the root, an intermediate or a device's own.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    def no_pass_phrase() -> str:  # OpenSSL would ask on the terminal, and wait
        raise BadSettings(f"--tls-key {key}: it has a pass phrase; a service needs one without")

    for flag, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise BadSettings(f"{flag} {path}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, no_pass_phrase)
    except OSError as error:
        raise BadSettings(f"--tls-cert {certificate} with --tls-key {key}: {_why(error)}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _why(error: OSError) -> str:
    reasons = {
        "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
        "EE_KEY_TOO_SMALL": "the key is too small; RSA takes 2048 bits or more",
        "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate (PEM) in it",
    }
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLError):
        return reasons.get(reason, f"not usable as PEM ({reason or 'unknown'})")
    return error.strerror or str(error)


class HandshakeFailed(Exception):
    """No TLS came about: ``what`` was wrong, ``remedy`` says which flag would change it.

    ``told``: the peer was told, and has to be given time to read it. ``quiet``: it sent nothing at
    all, as those do who only look whether the port is open.
    """

    def __init__(self, what: str, remedy: str, *, told: bool = False, quiet: bool = False) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.told = told
        self.quiet = quiet


class TLSConnection:
    """As ``Connection``, and over one, which it owns; ``handshake`` first."""

    def __init__(
        self, connection: Connection, context: ssl.SSLContext, seconds: float, server: str = ""
    ) -> None:
        """``seconds``: for the handshake, and for what TLS itself has to say later. ``server``: the
        host that is the server, when we are the client."""
        self._connection = connection
        self._seconds = seconds
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not server, server_hostname=server or None
        )
        self._sealed = memoryview(bytearray(_SEALED_AT_ONCE))
        self._heard = 0
        self._ending = False

    def handshake(self) -> None:
        """Raises HandshakeFailed, and Stopping. The peer has been told of a failure."""
        deadline = time.monotonic() + self._seconds
        try:
            while not self._shake_hands():
                self._flush(deadline - time.monotonic())
                self._hear(deadline)
            self._flush(deadline - time.monotonic())
        except ssl.SSLError as error:
            self._ending = True
            with contextlib.suppress(OSError):
                self._flush(self._seconds)
            raise _failure(error) from None
        except TimeoutError:
            self._ending = True
            what = f"no handshake within {self._seconds:g} s (--pdu-timeout)"
            raise HandshakeFailed(what, _NO_FLAG, quiet=not self._heard) from None
        except OSError:
            self._ending = True
            raise HandshakeFailed(
                "the peer ended the handshake", _OUR_CERTIFICATE, quiet=not self._heard
            ) from None

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _hear(self, deadline: float) -> None:
        """Takes what the peer sends of its part of the handshake. Raises as ``handshake``."""
        while (got := self._connection.receive(self._sealed)) is None:
            self._connection.wait(deadline - time.monotonic())
        if not got:
            raise ConnectionResetError
        if not self._heard and self._sealed[0] == PDU.ASSOCIATE_RQ:
            self._ending = True
            with contextlib.suppress(OSError):  # in its own language, that it may say so
                self._connection.send(ABORT_BY_USER, self._seconds)
            what = "is spoken on this port, and DICOM came without"
            raise HandshakeFailed(what, _PLAIN_PEER, told=True)
        self._heard += got
        self._incoming.write(self._sealed[:got])

    def describe(self) -> str:
        """Version, suite and whose certificate, for the log."""
        cipher = self._tls.cipher() or ("?", "?", 0)
        subject: Any = (self._tls.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        whose = "".join(c if c.isprintable() else "?" for c in "".join(names))
        return f"{self._tls.version()} {cipher[0]}, certificate of {whose or 'nobody'}"

    # --- as Connection ------------------------------------------------------------------------

    @property
    def stopping(self) -> int:
        return self._connection.stopping

    def receive(self, into: memoryview) -> int | None:
        """How many bytes came: 0 when the peer closed, None when there are none yet.

        Raises OSError when the connection broke, or what came is not what the peer sealed.
        """
        opened = 0
        while opened < len(into):
            try:
                got: Any = self._tls.read(len(into) - opened, into[opened:])
            except ssl.SSLWantReadError:
                if self._outgoing.pending:  # an answer to a message of TLS's own
                    self._flush(self._seconds)
                if opened:
                    break
                sealed = self._connection.receive(self._sealed)
                if not sealed:
                    return sealed
                self._incoming.write(self._sealed[:sealed])
            except ssl.SSLZeroReturnError:
                break
            except ssl.SSLError:
                self._ending = True
                with contextlib.suppress(OSError):
                    self._flush(self._seconds)
                raise
            else:
                if not got:
                    break
                opened += got
        return opened

    def wait(self, seconds: float) -> None:
        """Waits until the peer sends or closes. Raises TimeoutError, Stopping, OSError.

        Right after ``receive`` said None: nothing that came is left unopened then.
        """
        self._connection.wait(seconds)

    def send(self, data: bytes, seconds: float) -> None:
        """Sends all of ``data``. Raises TimeoutError when the peer does not take it; OSError."""
        self._tls.write(data)
        self._flush(seconds)

    def send_all(self, buffers: Sequence[Buffer], seconds: float) -> None:
        """Sends all of ``buffers``; as ``send``."""
        if data := b"".join(buffers):  # else each of them would be a record of its own
            self._tls.write(data)
        self._flush(seconds)

    def await_close(self, seconds: float) -> None:
        """Says that we send no more, then drops all that comes until the peer closes."""
        self._say_end(seconds)
        self._connection.await_close(seconds)

    def close(self) -> None:
        self._say_end(0.0)
        self._connection.close()

    # --- within -------------------------------------------------------------------------------

    def _flush(self, seconds: float) -> None:
        if self._outgoing.pending:
            self._connection.send(self._outgoing.read(), seconds)

    def _say_end(self, seconds: float) -> None:
        """Sends a close_notify (RFC 8446 6.1), once, unless TLS itself has failed."""
        if not self._ending:
            self._ending = True
            with contextlib.suppress(OSError):
                with contextlib.suppress(ssl.SSLWantReadError):  # the peer's is not waited for
                    self._tls.unwrap()
                self._flush(seconds)


_NO_FLAG = "no flag changes it"
_PLAIN_PEER = "set the peer to TLS, or serve without --tls-cert"
_OUR_CERTIFICATE = "it may not trust who signed --tls-cert"
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "the peer showed no certificate",
        "flag to accept it: --no-tls-verify",
    ),
    "UNSUPPORTED_PROTOCOL": ("the peer speaks no TLS from 1.2 on", _NO_FLAG),
    "NO_SHARED_CIPHER": ("the peer offers no cipher suite of BCP 195", _NO_FLAG),
    "WRONG_VERSION_NUMBER": ("what came is not TLS", _PLAIN_PEER),
    "HTTP_REQUEST": ("what came is HTTP", _NO_FLAG),
}


def _failure(error: ssl.SSLError) -> HandshakeFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"the peer's certificate is not accepted: {error.verify_message}"
        return HandshakeFailed(what, "flag to accept it: --tls-ca with who signed it", told=True)
    reason = error.reason or "unknown"
    if reason in _REASONS:
        return HandshakeFailed(*_REASONS[reason], told=True)
    words = reason.lower().replace("_", " ")
    if "alert" in words:
        return HandshakeFailed(f"the peer ended the handshake: {words}", _OUR_CERTIFICATE)
    return HandshakeFailed(f"the handshake failed: {words}", _NO_FLAG, told=True)
