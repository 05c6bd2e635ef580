"""Command sets of responses: what pynetdicom makes of the same answer is what we send."""

from __future__ import annotations

import pytest
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_ECHO_RSP, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode

from plainpacs.scp.network.dimse import Command, CommandField, response

CT = "1.2.840.10008.5.1.4.1.1.2"


def theirs(primitive: C_STORE | C_ECHO) -> bytes:
    message = C_STORE_RSP() if isinstance(primitive, C_STORE) else C_ECHO_RSP()
    message.primitive_to_message(primitive)
    encoded = encode(message.command_set, True, True)
    assert encoded is not None
    return encoded


@pytest.mark.parametrize("instance", ["1.2.3", "1.2.34", "1." + "2" * 62])
@pytest.mark.parametrize("status", [0x0000, 0xA700, 0x0110])
def test_of_a_store(instance: str, status: int) -> None:
    command = Command(CommandField.C_STORE_RQ, 65535, True, CT, instance, {})
    wanted = C_STORE()
    wanted.MessageIDBeingRespondedTo = 65535
    wanted.AffectedSOPClassUID, wanted.AffectedSOPInstanceUID = UID(CT), UID(instance)
    wanted.Status = status
    assert response(command, status) == theirs(wanted)


def test_of_an_echo() -> None:
    command = Command(CommandField.C_ECHO_RQ, 7, False, "1.2.840.10008.1.1", "", {})
    wanted = C_ECHO()
    wanted.MessageIDBeingRespondedTo = 7
    wanted.AffectedSOPClassUID = UID("1.2.840.10008.1.1")
    wanted.Status = 0
    assert response(command, 0) == theirs(wanted)


@pytest.mark.parametrize("uid", ["", "../../etc", "Doe^Jane", "1." + "2" * 63, "1.2\n3"])
def test_what_is_no_uid_is_not_repeated(uid: str) -> None:
    command = Command(CommandField.C_STORE_RQ, 1, True, uid, uid, {})
    bare = response(command, 0xA900)
    assert bare == response(Command(CommandField.C_STORE_RQ, 1, True, "", "", {}, b""), 0xA900)
    with_comment = response(command, 0xA900, "why")
    assert with_comment.replace(b"\0\0\x02\x09\x04\0\0\0why ", b"")[12:] == bare[12:]


def test_a_comment_is_all_that_it_adds() -> None:
    command = Command(CommandField.C_STORE_RQ, 9, True, CT, "1.2.3", {})
    with_comment, bare = response(command, 0xA700, "full"), response(command, 0xA700)
    assert len(with_comment) == len(bare) + 12
    assert int.from_bytes(with_comment[8:12], "little") == len(with_comment) - 12
