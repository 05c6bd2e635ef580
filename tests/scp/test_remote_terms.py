"""Terms as queries, contexts as offers, and work as it is shared out: what needs no peer."""

from __future__ import annotations

import pytest

from plainpacs.archive.dicom.attributes import Level
from plainpacs.scp.remote import missing
from plainpacs.scp.remote import terms as remote_terms
from plainpacs.scp.remote.retrieve import Wanted
from plainpacs.scp.storage import cget_contexts


@pytest.mark.parametrize(
    ("terms", "question"),
    [
        (["StudyDate=2024-01-31"], {"StudyDate": "20240131"}),
        (["StudyDate=20240101-"], {"StudyDate": "20240101-"}),
        (["StudyDate=-20240131"], {"StudyDate": "-20240131"}),
        (["StudyTime=10:15-"], {"StudyTime": "1015-"}),
        (["modality=ct"], {"ModalitiesInStudy": "CT"}),
        (["StudyInstanceUID=1.2", "StudyInstanceUID=1.3"], {"StudyInstanceUID": "1.2\\1.3"}),
        (["StudyInstanceUID=1.*"], {}),
        (["NumberOfStudyRelatedSeries=2-"], {}),
        (["StudyDateTime=202401310900-20240201"], {"StudyDate": "20240131-20240201"}),
        (["PatientName=doe^j*"], {"PatientName": "doe^j*"}),
    ],
)
def test_what_is_asked_for(terms: list[str], question: dict[str, str]) -> None:
    assert remote_terms.read(terms, Level.STUDY).questions(Level.STUDY) == [question]


def test_what_the_peer_did_not_heed_is_judged_here_as_far_as_it_told() -> None:
    terms = remote_terms.read(["Modality=CT", "InstitutionName=here"], Level.STUDY)
    ct, mr = {"ModalitiesInStudy": ["CT"]}, {"ModalitiesInStudy": ["MR"]}
    assert terms.means(Level.STUDY, mr)
    assert not terms.means(Level.STUDY, mr, complete=False)
    assert terms.means(Level.STUDY, ct, complete=False)
    assert not terms.means(Level.STUDY, {**ct, "InstitutionName": "there"}, complete=False)


def test_words_are_looked_for_where_they_may_stand() -> None:
    terms = remote_terms.read(["Doe", "chest", "PatientID=A"], Level.STUDY)
    questions = terms.questions(Level.STUDY)
    assert {"PatientName": "*CHEST*", "PatientID": "A"} in questions
    assert {"StudyDescription": "*chest*", "PatientID": "A"} in questions
    assert {"PatientID": "A"} in questions  # in place of *chest*
    assert terms.means(Level.STUDY, {"PatientName": "DOE^J", "StudyDescription": "Chest"})
    assert not terms.means(Level.STUDY, {"PatientName": "DOE^J"})


@pytest.mark.parametrize("number", [1, 2, 5, 61, 127, 300])
def test_contexts_fit_into_an_association(number: int) -> None:
    contexts = cget_contexts.storage_contexts([f"1.2.{one}" for one in range(number)])
    assert len(contexts) <= 127  # and one for the request itself
    assert len({one.abstract_syntax for one in contexts}) == min(number, 127)
    of_first = [uid for one in contexts[: len(contexts) // min(number, 127)]
                for uid in one.transfer_syntax]  # fmt: skip
    assert len(of_first) == len(set(of_first)) > 50
    assert "1.2.840.10008.1.2.4.94" not in of_first  # whose pixels are elsewhere


def test_large_series_are_shared_out() -> None:
    large = Wanted("1", "1.1", missing={f"1.1.{one}": "" for one in range(900)})
    small = Wanted("1", "1.2", missing={"1.2.1": ""})
    assert missing.shared_out([large, small], 2) == [large, small]
    parts = missing.shared_out([large, small], 4)
    assert small in parts
    assert len(parts) >= 4
    asked = [uid for part in parts if part is not small for uid in part.instances]
    assert sorted(asked) == sorted(large.missing or {})
    assert all(len("\\".join(part.instances)) < 0xFFFE for part in parts)
    assert missing.shared_out([Wanted("1")], 4) == [Wanted("1")]
