"""The table of kept attributes agrees with the data dictionary and with itself."""

import pytest
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag

from plainpacs.archive.dicom import attributes
from plainpacs.archive.dicom.attributes import BY_KEYWORD, KEPT, REQUESTED, KeptAttribute, Level


@pytest.mark.parametrize("kept", KEPT + REQUESTED, ids=lambda kept: kept.keyword)
def test_tag_and_vr_are_the_dictionary_s(kept: KeptAttribute) -> None:
    assert keyword_for_tag(kept.tag) == kept.keyword
    assert dictionary_VR(kept.tag) == kept.vr


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.keyword)
def test_what_may_have_several_values_is_an_array(kept: KeptAttribute) -> None:
    gathered = ("RequestAttributesSequence", "ReferencedSOPInstanceUID")  # from several items
    assert kept.multiple == (dictionary_VM(kept.tag) != "1" or kept.keyword in gathered)


def test_each_keyword_once() -> None:
    assert len({kept.keyword for kept in KEPT}) == len(KEPT) == len(BY_KEYWORD)
    assert len({kept.tag for kept in KEPT}) == len(KEPT)


def test_levels_part_the_keywords() -> None:
    levels = (attributes.PATIENT, attributes.STUDY, attributes.SERIES, attributes.INSTANCE)
    assert frozenset().union(*levels) == set(BY_KEYWORD)
    assert sum(map(len, levels)) == len(BY_KEYWORD)
    assert attributes.PATIENT_AND_STUDY == attributes.PATIENT | attributes.STUDY


def test_uids_are_at_their_own_level() -> None:
    assert BY_KEYWORD["PatientID"].level is Level.PATIENT
    assert BY_KEYWORD["StudyInstanceUID"].level is Level.STUDY
    assert BY_KEYWORD["SeriesInstanceUID"].level is Level.SERIES
    assert BY_KEYWORD["SOPInstanceUID"].level is Level.INSTANCE
