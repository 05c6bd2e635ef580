from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.errors import InvalidUID
from plainpacs.archive.tree.identity import InstanceKey, as_name, is_name, month_of

ACCEPTED = [
    "1",
    "1.2.840.10008.1",
    "1." * 31 + "22",  # 64 characters
    "1.02.3",
    "1..2",
    "abc-def_1.x",
    "con1",
    "2.25.1",
]
REFUSED = [
    "",
    ".",
    "..",
    ".1",
    "1.",
    "../../x",
    "/etc/x",
    "1.2/3",
    "1\\2",
    "1\0002",
    "1" * 65,
    "9" * 300,
    "study.json",
    "studies.jsonl",
    "1.2.dcm",
    "con",
    "nul.1.2",
    "com1",
    "lpt9.x",
    "CON",
    "ABC",
    "1.2.3\n",
    "é",
    "\N{FULLWIDTH DIGIT ONE}.2",
    "1 2",
    "1:2",
    "~1",
]


@pytest.mark.parametrize("uid", ACCEPTED)
def test_accepted(uid: str) -> None:
    assert as_name("StudyInstanceUID", uid) == uid


@pytest.mark.parametrize("uid", REFUSED)
def test_refused(uid: str) -> None:
    with pytest.raises(InvalidUID) as caught:
        as_name("StudyInstanceUID", uid)
    assert str(caught.value).startswith("StudyInstanceUID ")
    if len(uid) > 2:
        assert uid not in str(caught.value)


def test_padding_is_stripped() -> None:
    assert as_name("SOPInstanceUID", "1.2.3\0") == "1.2.3"
    assert as_name("SOPInstanceUID", "1.2.3 \0 ") == "1.2.3"
    with pytest.raises(InvalidUID):
        as_name("SOPInstanceUID", " 1.2.3")


@given(st.text(max_size=80))
def test_a_name_is_harmless(text: str) -> None:
    if is_name(text):
        assert text == text.lower()
        assert text.isascii()
        assert not set(text) & set('/\\\0:*?"<>|~ ')
        assert text.strip(".") == text
        assert 0 < len(text) <= 64


@given(st.lists(st.integers(0, 10**38), min_size=1, max_size=12))
def test_every_valid_uid_passes(components: list[int]) -> None:
    uid = ".".join(map(str, components))
    assert is_name(uid) == (len(uid) <= 64)


@pytest.mark.parametrize(
    ("date", "month"),
    [
        ("20240131", "202401"),
        ("1997.04.24", "199704"),
        ("20240229", "202402"),
        ("20230229", "undated"),
        ("19000229", "undated"),
        ("20000229", "200002"),
        ("20241301", "undated"),
        ("20240001", "undated"),
        ("20240100", "undated"),
        ("00000101", "undated"),
        ("", "undated"),
        (None, "undated"),
        ("2024", "undated"),
        ("2024013", "undated"),
        ("20240131 ", "202401"),
        ("2024013\N{FULLWIDTH DIGIT ONE}", "undated"),
        ("20240131\n", "undated"),
        ("../../..", "undated"),
    ],
)
def test_month_of(date: str | None, month: str) -> None:
    assert month_of(date) == month


def test_key_checks_every_uid() -> None:
    assert InstanceKey.of("20240131", "1", "2\0", "3") == InstanceKey("202401", "1", "2", "3")
    for uids in (("", "2", "3"), ("1", "..", "3"), ("1", "2", "a/b")):
        with pytest.raises(InvalidUID):
            InstanceKey.of("20240131", *uids)
