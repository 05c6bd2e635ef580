"""What is read by comparing with the header before is what the walker reads."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from plainpacs.archive.dicom import header_cache as header_alike
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.dicom.header_cache import HeaderReader
from plainpacs.archive.errors import NotDICOM, UnreadableDataSet
from tests.archive.test_header import (
    EXPLICIT,
    GENEROUS,
    IMPLICIT,
    SYNTAXES,
    data_sets,
    encode,
    small_data_set,
)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the walker was asked."""
    count: Counter[str] = Counter()

    def counting(*args: Any, **options: Any) -> Any:
        count["times"] += 1
        return read_header(*args, **options)

    monkeypatch.setattr(header_alike, "read_header", counting)
    return count


def answer(read: Any, data: bytes, syntax: str, **options: Any) -> Any:
    try:
        return list(read(data, syntax, **options).items())  # in the same order, too
    except UnreadableDataSet as error:
        return str(error)


def slice_of(number: int, **values: Any) -> Dataset:
    ds = small_data_set()
    ds.SOPInstanceUID = f"1.2.3.{number}"
    ds.InstanceNumber = number
    ds.ImagePositionPatient = [-125.5, -282.5, number * 1.5]
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
@GENEROUS
@given(ds=data_sets(), others=st.lists(data_sets(), max_size=3), data=st.data())
def test_any_data_sets_one_after_the_other(
    syntax: str, ds: Dataset, others: list[Dataset], data: st.DataObject
) -> None:
    reader = HeaderReader()
    encoded = [encode(each, syntax) for each in (ds, ds, *others, ds)]
    changed = bytearray(encoded[0])
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4)):
        if changed:
            changed[at % len(changed)] = byte
    for each in (*encoded, bytes(changed), *encoded):
        assert answer(reader.read, each, syntax) == answer(read_header, each, syntax)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_each_byte_changed_and_cut_away(syntax: str, complete: bool) -> None:
    data = encode(slice_of(5, SOPClassUID="1.2", PatientID="P1", StudyID="7"), syntax)
    reader = HeaderReader()
    for at in range(len(data)):
        changed = bytearray(data)
        for byte in (changed[at] ^ 1, changed[at] ^ 0x80, 0, 0x20, 0xFF):
            changed[at] = byte
            for each in (data, bytes(changed), data[:at]):
                want = answer(read_header, each, syntax, complete=complete)
                assert answer(reader.read, each, syntax, complete=complete) == want


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_series_is_walked_seldom(syntax: str, walked: Counter[str]) -> None:
    reader = HeaderReader()
    for number in range(1, 200):
        data = encode(slice_of(number), syntax)
        assert answer(reader.read, data, syntax) == answer(read_header, data, syntax)
    # Numbers get longer at 10, 100, and where a coordinate has a fraction or more digits.
    assert walked["times"] < 20


def test_a_value_appears_vanishes_or_is_decoded_otherwise() -> None:
    reader = HeaderReader()
    turns: list[dict[str, Any]] = [
        {"StudyID": "12", "PatientName": "Dö^J"},
        {"StudyID": "13", "PatientName": "Dä^J"},
        {"StudyID": "  ", "PatientName": "Dä^J"},
        {"StudyID": "14", "PatientName": "Dä^J"},
        {"StudyID": "14", "PatientName": "Dø^J"},
        {"StudyID": "14", "PatientName": "Дx^J", "SpecificCharacterSet": "ISO_IR 144"},
        {"StudyID": "15", "PatientName": "Жx^J", "SpecificCharacterSet": "ISO_IR 144"},
        {"StudyID": "15", "PatientName": "Dö^J"},
        {"StudyID": "15", "Rows": 0},
        {"StudyID": "15", "Rows": 7},
    ]
    for values in turns * 2:
        data = encode(slice_of(10, **values), EXPLICIT)
        read = answer(reader.read, data, EXPLICIT)
        assert read == answer(read_header, data, EXPLICIT)
        assert dict(read).get("PatientName", "Dö^J") == values.get("PatientName", "Dö^J")


def test_what_is_learned_of_no_header_is_tried_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    learn = header_alike._learned
    monkeypatch.setattr(
        header_alike, "_learned", lambda *args: tried.append(number) or learn(*args)
    )
    reader = HeaderReader()
    for number in range(300):
        ds = slice_of(10)
        ds.add_new(0x00111001, "OB", bytes(2 * number))
        reader.read(encode(ds, EXPLICIT), EXPLICIT)
    assert 3 <= len(tried) < 12


def test_what_was_read_is_the_callers_own() -> None:
    reader = HeaderReader()
    for number in range(10, 20):
        data = encode(slice_of(number), EXPLICIT)
        attributes = reader.read(data, EXPLICIT)
        assert attributes == read_header(data, EXPLICIT)
        attributes.clear()


def test_another_transfer_syntax_is_another_header(walked: Counter[str]) -> None:
    reader = HeaderReader()
    data = encode(slice_of(10), EXPLICIT)
    for syntax in (EXPLICIT, "1.2.840.10008.1.2.4.50", EXPLICIT):
        reader.read(data, syntax)
    assert walked["times"] == 2


def test_threads_learn_for_themselves() -> None:
    reader = HeaderReader()
    wrong: list[object] = []

    def read(patient: str) -> None:
        for number in range(10, 99):
            data = encode(slice_of(number, PatientID=patient), EXPLICIT)
            if answer(reader.read, data, EXPLICIT) != answer(read_header, data, EXPLICIT):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(f"P{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_real_series(walked: Counter[str], real_folders: tuple[Path, ...]) -> None:
    series: dict[str, list[tuple[int, str, bytes, str]]] = defaultdict(list)
    paths = [path for folder in real_folders for path in folder.rglob("*") if path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            head = file.read(64 << 10)
        try:
            found = part10.read_part10(head)
            data, syntax = head[found.dataset_offset :], found.transfer_syntax
            attributes = read_header(data, syntax)
        except (NotDICOM, UnreadableDataSet):
            continue
        number = attributes.get("InstanceNumber", 0)
        series[attributes.get("SeriesInstanceUID", "")].append((number, str(path), data, syntax))
    for instances in series.values():
        reader = HeaderReader()
        before = walked["times"]
        for _, path, data, syntax in sorted(instances):
            want = answer(read_header, data, syntax)
            assert answer(reader.read, data, syntax) == want, path
        if len(instances) > 100:  # the long ones come from a scanner
            assert walked["times"] - before < len(instances) / 10
