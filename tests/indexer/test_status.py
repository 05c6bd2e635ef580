"""The table of answers holds design.md section 6."""

from __future__ import annotations

import pytest

from plainpacs.archive.errors import (
    DataSetMismatch,
    InvalidUID,
    OutOfSpace,
    StorageUnavailable,
    UnreadableDataSet,
)
from plainpacs.scp.network import answers
from plainpacs.scp.network.answers import RefusedSOPClass, StoreStatus, answer_for, comment_for


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StorageUnavailable("no space left on /data"), 0xA700),
        (OutOfSpace("less is free than the reserve"), 0xA700),
        (OSError(28, "No space left on device"), 0xA700),
        (MemoryError(), 0xA700),
        (DataSetMismatch("the data set has another SOPInstanceUID"), 0xA900),
        (UnreadableDataSet("the data set ends early"), 0xC000),
        (InvalidUID("StudyInstanceUID", "is empty"), 0xC000),
        (RefusedSOPClass("refused"), 0x0122),
        (RuntimeError("never thought of"), 0x0110),
        (RecursionError(), 0x0110),
    ],
)
def test_every_error_has_the_answer_of_the_design(error: Exception, expected: int) -> None:
    assert answer_for(error).status == expected


def test_rejections_are_those_of_the_design() -> None:
    assert {r.code for r in answers.REJECTIONS} == {"1/1/7", "1/1/3", "1/1/2", "2/3/2"}


def test_every_row_cites_the_standard_and_names_a_remedy() -> None:
    for row in (*answers.ANSWERS, answers.UNFORESEEN):
        assert row.reference.startswith("PS3."), row
        assert row.remedy, row
    for rejection in answers.REJECTIONS:
        assert rejection.reference.startswith("PS3.8"), rejection
        assert rejection.remedy, rejection


def test_a_failure_is_answered_by_one_row_only() -> None:
    rows = (*answers.ANSWERS, answers.UNFORESEEN)
    said = [(row.status, row.comment) for row in rows]
    assert len(said) == len(set(said))
    assert StoreStatus.SUCCESS not in [row.status for row in rows]


@pytest.mark.parametrize(
    "error",
    [
        UnreadableDataSet("x" * 500),
        UnreadableDataSet("name \N{SNOWMAN}\x1b[31m\\ and \n line"),
        UnreadableDataSet(""),
        RuntimeError("PatientName is DOE^JANE"),
        StorageUnavailable("/data/archive/secret is full"),
    ],
)
def test_a_comment_fits_the_element_and_keeps_to_ascii(error: Exception) -> None:
    comment = comment_for(error)
    assert 0 < len(comment) <= 64
    assert all(" " <= c <= "~" and c != "\\" for c in comment)


@pytest.mark.parametrize(
    "error", [RuntimeError("PatientName is DOE^JANE"), StorageUnavailable("/data/DOE is full")]
)
def test_words_that_may_hold_anything_are_not_told_to_the_peer(error: Exception) -> None:
    assert "DOE" not in comment_for(error)
