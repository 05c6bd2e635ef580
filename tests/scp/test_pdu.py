"""Association PDUs, held to pynetdicom's classes, which share no code with ours."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context

from plainpacs.scp.network import pdu
from plainpacs.scp.network.answers import REJECTIONS
from plainpacs.scp.network.dimse import ProtocolError, Reason
from plainpacs.scp.network.negotiation import ContextResult, ProposedContext, Result, Role
from plainpacs.scp.network.session_protocol import Acceptance
from tests.support.peer import CT, EVRLE, IVRLE, MR, associate_rq, context_item

OURS = ("1.2.3.4.5", "PLAINPACS_1")


def theirs(*contexts: tuple[str, list[str]]) -> bytes:
    """A request as pynetdicom encodes it, with all the items that it knows and we heed or not."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = "SENDER", "DRDCM"
    proposed = []
    for number, (abstract, syntaxes) in enumerate(contexts):
        proposed.append(build_context(abstract, syntaxes))
        proposed[-1].context_id = 2 * number + 1
    primitive.presentation_context_definition_list = proposed
    length = MaximumLengthNotification()
    length.maximum_length_received = 16382
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID("1.2.3")
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = "THEIRS"
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = UID(CT), True, True
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = UID("1.2.9"), UID("1.2.840.10008.4.2")
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    primitive.user_information = [length, implementation, version, role, common, identity]
    encoded = A_ASSOCIATE_RQ()
    encoded.from_primitive(primitive)
    return encoded.encode()


def test_a_request_is_read_as_pynetdicom_wrote_it() -> None:
    request = pdu.read_request(theirs((CT, [EVRLE, IVRLE]), (MR, [IVRLE]))[6:])
    proposal = request.proposal
    assert (proposal.calling_ae, proposal.called_ae) == ("SENDER", "DRDCM")
    assert proposal.application_context == "1.2.840.10008.3.1.1.1"
    assert proposal.contexts == (
        ProposedContext(1, CT, (EVRLE, IVRLE)),
        ProposedContext(3, MR, (IVRLE,)),
    )
    assert proposal.roles == {CT: Role(True, True)}
    assert proposal.declared == {"1.2.9": "1.2.840.10008.4.2"}
    assert request.longest_pdu == 16382
    assert request.speaks_version_1


def test_an_acceptance_is_read_by_pynetdicom_as_we_meant_it() -> None:
    request = pdu.read_request(theirs((CT, [EVRLE, IVRLE]), (MR, [IVRLE]))[6:])
    results = (
        ContextResult(1, CT, EVRLE, Result.ACCEPTED),
        ContextResult(3, MR, IVRLE, Result.ABSTRACT_SYNTAX_NOT_SUPPORTED),
    )
    acceptance = Acceptance(results, {CT: Role(True, False)})
    answer = A_ASSOCIATE_AC()
    encoded = pdu.accept(request, acceptance, 1 << 20, OURS)
    answer.decode(encoded)
    assert len(answer) == len(encoded)
    primitive = answer.to_primitive()
    assert primitive.called_ae_title == "DRDCM"
    assert primitive.calling_ae_title == "SENDER"
    assert primitive.maximum_length_received == 1 << 20
    assert primitive.implementation_class_uid == OURS[0]
    found = primitive.presentation_context_definition_results_list
    assert [(c.context_id, c.result) for c in found] == [(1, 0), (3, 3)]
    assert found[0].transfer_syntax == [EVRLE]
    [role] = [
        i for i in primitive.user_information if isinstance(i, SCP_SCU_RoleSelectionNegotiation)
    ]
    assert (role.sop_class_uid, role.scu_role, role.scp_role) == (CT, True, False)
    [version] = [
        i
        for i in primitive.user_information
        if isinstance(i, ImplementationVersionNameNotification)
    ]
    assert version.implementation_version_name == OURS[1]


@pytest.mark.parametrize("rejection", REJECTIONS, ids=lambda rejection: str(rejection.code))
def test_a_rejection_is_read_by_pynetdicom(rejection: pdu.Rejection) -> None:
    answer = A_ASSOCIATE_RJ()
    answer.decode(pdu.reject(rejection))
    assert (answer.result, answer.source, answer.reason_diagnostic) == (
        rejection.result,
        rejection.source,
        rejection.reason,
    )
    assert answer.reason_str


@pytest.mark.parametrize("reason", Reason)
def test_an_abort_is_read_by_pynetdicom(reason: Reason) -> None:
    answer = A_ABORT_RQ()
    answer.decode(pdu.abort(reason))
    assert (answer.source, answer.reason_diagnostic) == (2, reason)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reading_of_a_request(body: bytes) -> None:
    valid = associate_rq(context_item(1, CT, [EVRLE]))[6:]
    for tried in (body, valid[:68] + body, valid + body):
        with contextlib.suppress(ProtocolError):
            pdu.read_request(tried)


@given(st.data())
def test_no_change_of_a_byte_breaks_the_reading_of_a_request(data: st.DataObject) -> None:
    changed = bytearray(theirs((CT, [EVRLE, IVRLE]), (MR, [IVRLE]))[6:])
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        pdu.read_request(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
