"""What the statuses that peers answer with mean: pynetdicom's words, and where PS3 says so.

>>> meaning("C-STORE", 0xA700)
'A700, Refused: Out of Resources (PS3.4 B.2.3)'
>>> meaning("C-MOVE", 0xA801), meaning("C-ECHO", 0x0122)
('A801, Move destination unknown (PS3.4 C.4.2)', '0122, Refused: SOP Class Not Supported \
(PS3.7 C)')
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pynetdicom import status as tables
from pynetdicom.status import GENERAL_STATUS

_TABLES = {
    "C-STORE": (tables.STORAGE_SERVICE_CLASS_STATUS, "PS3.4 B.2.3"),
    "C-FIND": (tables.QR_FIND_SERVICE_CLASS_STATUS, "PS3.4 C.4.1"),
    "C-MOVE": (tables.QR_MOVE_SERVICE_CLASS_STATUS, "PS3.4 C.4.2"),
    "C-GET": (tables.QR_GET_SERVICE_CLASS_STATUS, "PS3.4 C.4.3"),
}

PENDING = (0xFF00, 0xFF01)
"""More is to come; the second: not all of the optional keys counted (PS3.4 C.4.1.1.4)."""
PENDING_KEYS_NOT_SUPPORTED = 0xFF01


def meaning(operation: str, status: int) -> str:
    """``status`` as four digits and in words, as an answer to ``operation``."""
    own, where = _TABLES.get(operation, (GENERAL_STATUS, "PS3.7 C"))
    if status not in own:
        return f"{status:04X}, which {where} does not have"
    category, words = own[status]
    reference = "PS3.7 C" if status in GENERAL_STATUS else where
    return f"{status:04X}, {words or category} ({reference})"


def told(operation: str, answer: Dataset) -> str:
    """The status of ``answer`` in words, and what the peer said of it besides."""
    words = meaning(operation, answer.Status)
    comment = str(answer.get("ErrorComment") or "")
    return f"{words}: {comment!r}" if comment else words
