"""What was answered with success is kept, whole: any bytes, as data sets, in any order."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plainpacs.archive.dicom import part10
from plainpacs.archive.errors import RefusedInstance
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.store.store import Archive
from tests.support.archives import MODALITY, data_set, new_archive

EXPLICIT = part10.EXPLICIT_LITTLE_ENDIAN
IMPLICIT = part10.IMPLICIT_LITTLE_ENDIAN
BIG_ENDIAN = part10.EXPLICIT_BIG_ENDIAN
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"


def meta_element(element: int, value: bytes, syntax: str = EXPLICIT, vr: bytes = b"UI") -> bytes:
    """An element of group 0002 where it does not belong: in a data set."""
    value += b"\0" * (len(value) % 2)
    if syntax == IMPLICIT:
        return struct.pack("<HHL", 2, element, len(value)) + value
    order = ">" if syntax == BIG_ENDIAN else "<"
    return struct.pack(f"{order}HH2sH", 2, element, vr, len(value)) + value


def group_length(body: bytes, syntax: str = EXPLICIT, wrong: int = 0) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    length = struct.pack(f"{order}L", (len(body) + wrong) & 0xFFFFFFFF)
    return meta_element(0x0000, length, syntax, b"UL") + body


def body(syntax: str, name: str) -> bytes:
    """A small data set of one instance; ``name`` makes it other bytes."""
    explicit = data_set(PatientName=name, PixelData=None)
    if syntax in (EXPLICIT, JPEG, DEFLATED):
        return explicit
    implicit, swapped, offset = b"", b"", 0
    while offset < len(explicit):
        group, element, vr, length = struct.unpack_from("<HH2sH", explicit, offset)
        value = explicit[offset + 8 : offset + 8 + length]
        implicit += struct.pack("<HHL", group, element, length) + value
        swapped += struct.pack(">HH2sH", group, element, vr, length) + value
        offset += 8 + length
    return implicit if syntax == IMPLICIT else swapped


_uids = st.sampled_from((b"1.2.3", b"1.2.840.10008.1.2", EXPLICIT.encode(), b"9" * 70, b""))


@st.composite
def sent(draw: st.DrawFn) -> tuple[str, bytes]:
    """A transfer syntax, and what a sender says is a data set in it."""
    syntax = draw(st.sampled_from((EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, JPEG)))
    numbers = st.sampled_from((0x0001, 0x0002, 0x0003, 0x0010, 0x0012, 0x0016, 0x0102))
    elements = draw(st.lists(st.builds(meta_element, numbers, _uids, st.just(syntax)), max_size=4))
    before = b"".join(elements)
    if draw(st.booleans()):
        before = group_length(before, syntax, draw(st.sampled_from((0, 0, 8, -8, 1 << 20))))
    if draw(st.booleans()):
        before = draw(st.binary(max_size=40)) + before
    whole = before + body(syntax, draw(st.sampled_from(("A", "B"))))
    if syntax == DEFLATED:
        packer = zlib.compressobj(draw(st.integers(0, 9)), wbits=-15)
        whole = packer.compress(whole) + packer.flush()
    return syntax, whole


def kept(root: str) -> list[bytes]:
    """Every file of the archive, published or kept aside."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".dcm") or ("/conflicts/" in folder and "~" in name):
                found.append(Path(folder, name).read_bytes())
    return found


GROUP_2 = group_length(
    meta_element(0x0002, b"1.2.840.10008.5.1.4.1.1.2") + meta_element(0x0010, EXPLICIT.encode())
)


@settings(max_examples=80, deadline=None)
@given(st.lists(sent(), min_size=1, max_size=6))
@example([(EXPLICIT, GROUP_2 + body(EXPLICIT, "A"))] * 3 + [(EXPLICIT, body(EXPLICIT, "A"))])
@example([(EXPLICIT, body(EXPLICIT, "A")), (EXPLICIT, GROUP_2 + body(EXPLICIT, "A"))])
@example([(EXPLICIT, meta_element(0x0016, b"AE", vr=b"AE") + body(EXPLICIT, "A"))] * 2)
@example([(JPEG, GROUP_2 + body(JPEG, "A")), (EXPLICIT, GROUP_2 + body(EXPLICIT, "A"))])
def test_every_data_set_that_was_answered_with_success_is_there(
    data_sets: list[tuple[str, bytes]],
) -> None:
    with TemporaryDirectory() as folder:
        root = new_archive(Path(folder) / "a")
        answered = []
        with Archive.open(root, sync=False) as archive:
            for syntax, raw in data_sets:
                try:
                    stored = archive.store(raw, syntax, MODALITY)
                except RefusedInstance:
                    continue
                again = (syntax, raw) in answered
                assert not again or stored.outcome is not StoreOutcome.STORED
                answered.append((syntax, raw))
        files = kept(root)
        for syntax, raw in answered:
            header = [file[: -len(raw)] for file in files if file.endswith(raw)]
            # What stands before it is a File Meta of ours, of this transfer syntax, to the byte.
            assert any(_is_our_meta(one, syntax) for one in header), (syntax, raw)
        assert len(files) == len({(syntax, raw) for syntax, raw in answered})


def _is_our_meta(header: bytes, syntax: str) -> bool:
    length = struct.unpack_from("<L", header, 140)[0] if len(header) >= 144 else -1
    return header[128:132] == b"DICM" and len(header) == 144 + length and syntax.encode() in header


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_a_data_set_that_begins_with_group_2_is_a_duplicate_of_itself_alone(
    syntax: str, tmp_path: Path
) -> None:
    root = new_archive(tmp_path / "a")
    begins = group_length(meta_element(0x0010, b"1.2.840.10008.1.2.1", syntax), syntax)
    with_group_2, without = begins + body(syntax, "A"), body(syntax, "A")
    with Archive.open(root) as archive:
        outcomes = [archive.store(with_group_2, syntax, MODALITY).outcome for _ in range(3)]
        other = archive.store(without, syntax, MODALITY)
    assert outcomes == [StoreOutcome.STORED, StoreOutcome.DUPLICATE, StoreOutcome.DUPLICATE]
    assert other.outcome is StoreOutcome.CONFLICT
    assert Path(root, other.path).read_bytes().endswith(without)
