"""What the statuses that peers answer with mean, in words, with where PS3 says so.

>>> meaning(CommandField.C_STORE_RQ, 0xA700)
'A700, out of resources (PS3.4 B.2.3)'
>>> meaning(CommandField.C_MOVE_RQ, 0xA801), meaning(CommandField.C_ECHO_RQ, 0x0122)
('A801, it does not know the move destination (PS3.4 C.4.2)', '0122, SOP Class not supported \
(PS3.7 C)')
"""

from __future__ import annotations

from collections.abc import Mapping

from plainpacs.scp.network.dimse import Command, CommandField, Element

PENDING = (0xFF00, 0xFF01)
"""More is to come; the second: not all of the optional keys counted (PS3.4 C.4.1.1.4)."""
PENDING_KEYS_NOT_SUPPORTED = 0xFF01

_Table = Mapping[tuple[int, int], str]
"""By the first and the last status that mean it."""

_GENERAL: _Table = {
    (0x0000, 0x0000): "success",
    (0x0105, 0x0105): "no such attribute",
    (0x0106, 0x0106): "an attribute's value is invalid",
    (0x0107, 0x0107): "it did not take all attributes",
    (0x0110, 0x0110): "it failed in processing",
    (0x0111, 0x0111): "it has an instance of this UID already",
    (0x0112, 0x0112): "it has no such instance",
    (0x0115, 0x0115): "an argument's value is invalid",
    (0x0116, 0x0116): "an attribute's value is out of range",
    (0x0117, 0x0117): "the SOP Instance UID is invalid",
    (0x0118, 0x0118): "no such SOP Class",
    (0x0119, 0x0119): "the instance is of another SOP Class",
    (0x0120, 0x0120): "an attribute is missing",
    (0x0121, 0x0121): "an attribute's value is missing",
    (0x0122, 0x0122): "SOP Class not supported",
    (0x0124, 0x0124): "we are not authorised",
    (0x0210, 0x0210): "it has this message ID in hand already",
    (0x0211, 0x0211): "it does not know the operation",
    (0x0212, 0x0212): "it does not take an argument",
    (0x0213, 0x0213): "its resources are limited",
    (0xFE00, 0xFE00): "cancelled",
}
_STORE: _Table = {
    (0xA700, 0xA7FF): "out of resources",
    (0xA900, 0xA9FF): "the data set is not of the SOP Class",
    (0xB000, 0xB000): "stored, but with elements changed",
    (0xB006, 0xB006): "stored, but with elements left out",
    (0xB007, 0xB007): "stored, but the data set is not of the SOP Class",
    (0xC000, 0xCFFF): "it cannot understand the data set",
}
_FIND: _Table = {
    (0xA700, 0xA700): "out of resources",
    (0xA900, 0xA900): "the query is not of this model",
    (0xC000, 0xCFFF): "it cannot process the query",
    (0xFE00, 0xFE00): "cancelled",
}
_MOVE: _Table = {
    (0xA701, 0xA701): "out of resources: it could not count the matches",
    (0xA702, 0xA702): "out of resources: it could send none of it",
    (0xA801, 0xA801): "it does not know the move destination",
    (0xA900, 0xA900): "the request is not of this model",
    (0xAA00, 0xAA04): "no frames that can be taken out",
    (0xB000, 0xB000): "it could not send all of it",
    (0xC000, 0xCFFF): "it cannot process the request",
    (0xFE00, 0xFE00): "cancelled",
}
_TABLES: Mapping[int, tuple[_Table, str]] = {
    CommandField.C_STORE_RQ: (_STORE, "PS3.4 B.2.3"),
    CommandField.C_FIND_RQ: (_FIND, "PS3.4 C.4.1"),
    CommandField.C_MOVE_RQ: (_MOVE, "PS3.4 C.4.2"),
    CommandField.C_GET_RQ: (_MOVE, "PS3.4 C.4.3"),
}


def meaning(operation: CommandField, status: int) -> str:
    """``status`` as four digits and in words, as an answer to ``operation``."""
    own, where = _TABLES.get(operation, ({}, ""))
    for table, reference in ((own, where), (_GENERAL, "PS3.7 C")):
        for (first, last), words in table.items():
            if first <= status <= last:
                return f"{status:04X}, {words} ({reference})"
    return f"{status:04X}, which {where or 'PS3.7 C'} does not have"


def told(operation: CommandField, answer: Command) -> str:
    """The status of ``answer`` in words, and what the peer said of it besides."""
    words = meaning(operation, answer.status)
    comment = answer.text(Element.ERROR_COMMENT)
    return f"{words}: {comment!r}" if comment else words
