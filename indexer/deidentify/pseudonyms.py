"""What stands for whom: pseudonyms, UIDs and days, each a keyed hash of what it stands for.

The same key gives the same pseudonyms, in every export and on every machine. Who has the key and a
list of patients can tell who is meant; who does not have it can neither do that nor tell which of
two exports with different keys have the same patient.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import re
import stat
from functools import lru_cache

from plainpacs.archive.errors import BadSettings
from plainpacs.archive.tree import durable

_BYTES = 32
_MOST_DAYS = 3650
_WELL_KNOWN = "1.2.840.10008."
"""UIDs that DICOM itself defines stand for nobody."""
_KEY = re.compile(rb"([0-9a-f]{64})\n?")


def default_path() -> str:
    """Where the key lies unless a setting says otherwise: in the user's configuration."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(folder, "plainpacs", "deidentify.key")


def load_key(path: str) -> tuple[bytes, bool]:
    """The key in the file ``path``, and whether it was made: a missing file gets a new one.

    Raises BadSettings for a file that is not a key, or that others may read.
    """
    try:
        return _read(path), False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadSettings(f"cannot read the key {path}: {error.strerror}") from None
    try:
        return _make(path)
    except OSError as error:
        raise BadSettings(f"cannot make the key {path}: {error.strerror}") from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(_BYTES * 4)
    if stat.S_IMODE(mode) & 0o077:
        raise BadSettings(f"others may read the key {path}; chmod 600 {path}")
    found = _KEY.fullmatch(text)
    if not found:
        raise BadSettings(
            f"{path} is not a key of plainpacs (64 hexadecimal digits); name another file"
        )
    return bytes.fromhex(found[1].decode())


def _make(path: str) -> tuple[bytes, bool]:
    above, name = os.path.split(os.path.realpath(path))
    durable.make_path(above)
    folder = durable.open_folder(above)
    unfinished = f".{name}.{os.urandom(4).hex()}"
    try:
        key = os.urandom(_BYTES)
        fd = durable.create(unfinished, 0o600, folder=folder)
        try:
            durable.write_all(fd, [key.hex().encode() + b"\n"])
            durable.sync_file(fd)
        finally:
            os.close(fd)
        try:
            # Two that make it at once take the one that came first.
            durable.link(unfinished, name, folder=folder, to_folder=folder)
        except FileExistsError:
            return _read(path), False
        durable.sync_folder(folder)
        return key, True
    finally:
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(unfinished, folder=folder)
        os.close(folder)


class Pseudonyms:
    """Those of one ``key``."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.uid = lru_cache(maxsize=1 << 16)(self._uid)
        """The UID that stands for a UID (PS3.5 B.2). One of DICOM's own stays."""

    def _hash(self, kind: bytes, value: str) -> bytes:
        return hmac.digest(self._key, kind + b"\0" + value.encode("utf-8", "replace"), "sha256")

    def _uid(self, uid: str) -> str:
        if not uid or uid.startswith(_WELL_KNOWN):
            return uid
        number = int.from_bytes(self._hash(b"uid", uid)[:16])
        # A UUID of version 8 (RFC 9562 5.8).
        number = number & ~(0xF << 76) | 8 << 76
        number = number & ~(0x3 << 62) | 2 << 62
        return f"2.25.{number}"

    def patient(self, patient: str) -> str:
        """The PatientID, and name, that stand for a patient, whatever identifies that one."""
        return "DEID-" + base64.b32encode(self._hash(b"patient", patient)[:10]).decode()

    def days(self, patient: str) -> int:
        """How many days the dates of a patient are brought back: 1 to ten years."""
        return 1 + int.from_bytes(self._hash(b"days", patient)[:8]) % _MOST_DAYS
