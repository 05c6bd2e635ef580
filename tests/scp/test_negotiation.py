"""Which contexts are accepted, and with which transfer syntax."""

from __future__ import annotations

from typing import Any

import pynetdicom.sop_class
import pytest
from pydicom import config
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import AllTransferSyntaxes
from pynetdicom.presentation import build_context, negotiate_as_acceptor

from plainpacs.archive.dicom.uids import EXPLICIT_VR_BIG_ENDIAN as EVRBE
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN as EVRLE
from plainpacs.archive.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN as IVRLE
from plainpacs.scp.network.negotiation import (
    STORAGE_SERVICE,
    Result,
    choose_transfer_syntax,
    is_accepted,
    is_storage,
    name_of,
    supported,
)

config.settings.reading_validation_mode = config.IGNORE  # as the engine has it
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS = "1.2.840.10008.1.2.4.80"
HTJ2K = "1.2.840.10008.1.2.4.201"
DEFLATED = "1.2.840.10008.1.2.1.99"
GE_PRIVATE = "1.2.840.113619.5.2"
UNKNOWN_STORAGE = "1.2.840.10008.5.1.4.1.1.9999.1"
UNKNOWN = "1.2.840.10008.5.1.4.999"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"

# pynetdicom's groups of SOP Classes other than storage.
OTHER_GROUPS = [
    name
    for name in vars(pynetdicom.sop_class)
    if name.endswith("_CLASSES")
    and name not in ("_STORAGE_CLASSES", "_VERIFICATION_CLASSES", "_SERVICE_CLASSES")
]


@pytest.mark.parametrize("uid", sorted(pynetdicom.sop_class._STORAGE_CLASSES.values()))
def test_every_storage_class_pynetdicom_knows_is_accepted(uid: str) -> None:
    assert is_accepted(uid)


@pytest.mark.parametrize("group", OTHER_GROUPS)
def test_no_class_of_another_service_is_accepted(group: str) -> None:
    for keyword, uid in getattr(pynetdicom.sop_class, group).items():
        assert not is_accepted(uid), keyword
        assert not is_accepted(uid, STORAGE_SERVICE), f"{keyword}, declared to be storage"


def test_every_registered_sop_class_is_judged_by_what_its_name_says() -> None:
    no_study = (
        *("Hanging", "Color Palette", "Implant Template", "Implant Assembly", "Inventory"),
        *("Defined Procedure", "Protocol Approval", "Media Storage Directory", "Commitment"),
    )
    for uid, (name, kind, _, _, _) in UID_dictionary.items():
        if kind not in ("SOP Class", "Meta SOP Class", "Service Class") or not name:
            continue
        stores = "Storage" in name and not any(words in name for words in no_study)
        stores = stores and kind == "SOP Class" and "Information Model" not in name
        assert is_storage(uid) == stores, (uid, name)


@pytest.mark.parametrize(
    ("uid", "declared", "accepted"),
    [
        ("1.2.840.10008.1.1", None, True),
        (CT, None, True),
        ("1.2.840.113619.4.26", None, True),  # private
        ("1.3.12.2.1107.5.9.1", None, True),
        ("2.25.1234", None, True),
        (UNKNOWN_STORAGE, None, True),
        (UNKNOWN, None, False),
        (UNKNOWN, STORAGE_SERVICE, True),
        (UNKNOWN, "1.2.840.10008.4.3", False),
        (FIND, None, False),
        (FIND, STORAGE_SERVICE, False),
        ("1.2.840.10008.1.3.10", None, False),
        ("1.2.840.10008.5.1.4.39.1", None, False),
        ("1.2.840.10008.5.1.4.38.1", None, False),
        ("1.2.840.10008.5.1.4.1.1.200.1", None, False),
        ("1.2.840.10008.5.1.4.1.1.200.2", None, True),
        ("1.2.840.10008.5.1.4.1.1.201.1", None, False),
        ("1.2.840.10008.5.1.4.1.1", None, False),
        ("1.2.840.10008", None, False),
        ("1.2.840.100081.5", None, True),  # private: merely spelt alike
        ("", None, False),
        ("", STORAGE_SERVICE, False),
        ("../../etc/passwd", None, False),
        ("CT Image Storage", None, False),
        ("1." * 40 + "1", None, False),
    ],
)
def test_abstract_syntaxes(uid: str, declared: str | None, accepted: bool) -> None:
    assert is_accepted(uid, declared) is accepted


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([IVRLE], IVRLE),
        ([EVRBE], EVRBE),
        ([IVRLE, EVRLE], EVRLE),
        ([EVRBE, IVRLE, EVRLE], EVRLE),
        ([IVRLE, EVRBE], IVRLE),
        ([EVRBE, IVRLE], EVRBE),
        ([EVRLE, JPEG], EVRLE),
        ([JPEG, EVRLE], JPEG),
        ([IVRLE, JPEG], IVRLE),
        ([IVRLE, JPEG, EVRLE], EVRLE),
        ([JPEG_LS, JPEG, IVRLE, EVRLE], JPEG_LS),
        ([HTJ2K, EVRLE], HTJ2K),
        ([DEFLATED, EVRLE], DEFLATED),
        ([GE_PRIVATE], GE_PRIVATE),
        ([GE_PRIVATE, GE_PRIVATE], GE_PRIVATE),
        ([GE_PRIVATE, IVRLE], IVRLE),
        ([GE_PRIVATE, IVRLE, EVRLE], EVRLE),
        ([GE_PRIVATE, "1.2.3.4"], None),
        ([], None),
        (["1.2.840.10008.1.2.4.94"], None),
        (["1.2.840.10008.1.2.4.95"], None),
        (["1.2.840.10008.1.2.4.204"], None),
        (["1.2.840.10008.1.2.4.205"], None),
        (["1.2.840.10008.1.2.7.1"], None),
        (["1.2.840.10008.1.2.7.2"], None),
        (["1.2.840.10008.1.2.7.3"], None),
        (["1.2.840.10008.1.2.4.94", IVRLE], IVRLE),
        (["1.2.840.10008.1.2.4.94", IVRLE, EVRLE], EVRLE),
        (["1.2.840.10008.1.2.4.94", GE_PRIVATE], None),
    ],
)
def test_transfer_syntaxes(offered: list[str], chosen: str | None) -> None:
    assert choose_transfer_syntax(offered) == chosen


@pytest.mark.parametrize("uid", sorted(set(AllTransferSyntaxes)))
def test_every_known_transfer_syntax_passes_alone_unless_its_pixels_are_elsewhere(uid: str) -> None:
    name = name_of(uid)
    elsewhere = "JPIP" in name or "SMPTE" in name
    assert (choose_transfer_syntax([uid]) is None) == elsewhere, name
    if not elsewhere and uid not in (IVRLE, EVRBE):
        assert choose_transfer_syntax([uid, IVRLE, EVRLE]) == uid, name


def answers(
    *proposed: tuple[int, str, list[str]], **rules: Any
) -> tuple[list[tuple[int, str, str, int]], dict[str, tuple[bool, bool]]]:
    """Id, abstract and transfer syntax and result of each context, and the roles, as pynetdicom
    answers by our rules."""
    contexts = []
    for number, abstract, syntaxes in proposed:
        contexts.append(build_context(abstract, list(syntaxes)))
        contexts[-1].context_id = number
    ours = supported(contexts, **rules)
    found, roles = negotiate_as_acceptor(contexts, ours, rules.get("roles"))
    return (
        [
            (
                one.context_id or 0,
                str(one.abstract_syntax),
                str(one.transfer_syntax[0]),
                one.result or 0,
            )
            for one in found
        ],
        {str(role.sop_class_uid): (bool(role.scu_role), bool(role.scp_role)) for role in roles},
    )


def test_each_context_gets_its_result() -> None:
    elsewhere = "1.2.840.10008.1.2.4.94"
    found, _ = answers(
        (5, CT, [JPEG, IVRLE]),
        (1, FIND, [IVRLE]),
        (3, MR, [elsewhere]),
        (7, CT, []),
        (9, CT, [IVRLE]),
    )
    assert found == [
        (1, FIND, IVRLE, Result.ABSTRACT_SYNTAX_NOT_SUPPORTED),
        (3, MR, elsewhere, Result.TRANSFER_SYNTAXES_NOT_SUPPORTED),
        (5, CT, JPEG, Result.ACCEPTED),
        (7, CT, elsewhere, Result.TRANSFER_SYNTAXES_NOT_SUPPORTED),
        (9, CT, IVRLE, Result.ACCEPTED),
    ]
    assert [int(result) for result in Result] == [0, 1, 3, 4]


def test_an_id_that_comes_again_keeps_its_first_result() -> None:
    found, _ = answers((1, CT, [EVRLE]), (1, FIND, [IVRLE]))
    assert found == [(1, CT, EVRLE, Result.ACCEPTED)]


def test_padding_of_uids_does_not_count() -> None:
    found, _ = answers((1, CT + "\0", [IVRLE + "\0", EVRLE + " "]))
    assert found == [(1, CT, EVRLE, Result.ACCEPTED)]


def test_what_a_peer_declares_counts_for_its_own_class_only() -> None:
    declared = {UNKNOWN: STORAGE_SERVICE, FIND: STORAGE_SERVICE}
    found, _ = answers((1, UNKNOWN, [EVRLE]), (3, FIND, [EVRLE]), declared=declared)
    assert [one[3] for one in found] == [Result.ACCEPTED, Result.ABSTRACT_SYNTAX_NOT_SUPPORTED]


@pytest.mark.parametrize(
    ("role", "result", "answered"),
    [
        ((True, False), Result.ACCEPTED, {CT: (True, False)}),
        ((True, True), Result.ACCEPTED, {CT: (True, False)}),
        ((False, True), Result.USER_REJECTION, {}),
        ((False, False), Result.USER_REJECTION, {}),
    ],
)
def test_we_are_scp_only(
    role: tuple[bool, bool], result: Result, answered: dict[str, tuple[bool, bool]]
) -> None:
    found, roles = answers((1, CT, [EVRLE]), roles={CT: role, "1.2.3": (True, False)})
    assert [one[3] for one in found] == [result]
    assert roles == answered


def test_who_retrieves_is_sent_to_and_in_explicit_vr() -> None:
    get = "1.2.840.10008.5.1.4.1.2.2.3"
    found, roles = answers(
        (1, get, [IVRLE]),
        (3, CT, [JPEG, EVRLE]),
        roles={CT: (False, True), get: (True, False)},
        services={get},
    )
    assert [one[2:] for one in found] == [(IVRLE, 0), (EVRLE, 0)]
    assert roles == {CT: (False, True), get: (True, False)}
