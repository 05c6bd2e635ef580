"""Text that names no character set, or a wrong one: stored, listed, found, answered and shown as it
was meant, by the setting default_charset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.dicom.elements import encode_element
from plainpacs.archive.dicom.identifier import EXPLICIT
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import data_set, eventually, instances_in, new_archive, part10
from tests.support.commands import Run, run
from tests.support.peer import Peer
from tests.support.queries import SUCCESS, Asker
from tests.support.serve import Serve
from tests.support.web import web

__all__ = ["run"]  # the fixture

WANG = "王^小东".encode("gbk")
KIM = "김^민수".encode("cp949")
YAMADA = "山田^太郎".encode("cp932")
ZHANG = "張^偉".encode("big5")
IVANOV = "Иванов^Иван".encode("cp1251")


@pytest.fixture(autouse=True)
def _no_defaults_left() -> object:
    yield
    use_defaults(())


@pytest.mark.parametrize("receivers", ["1", "2"])
def test_a_device_that_names_no_character_set(
    serve: Serve, run: Run, tmp_path: Path, receivers: str
) -> None:
    service = serve(
        *("--receivers", receivers, "--default-charset", "GBK,KOREA=EUC-KR,RUSSIA=WINDOWS-1251")
    )
    sent = {"CT1": WANG, "KOREA": KIM, "RUSSIA": IVANOV}
    for number, (title, name) in enumerate(sent.items()):
        uid = f"1.2.{number}"
        values = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1"}
        instance = data_set(**values, SOPInstanceUID=f"{uid}.1.1", PatientName=name)
        with Peer(service.port, calling=title) as peer:
            assert peer.store(instance, sop=f"{uid}.1.1") == 0
    root = service.root

    def listed() -> bool:
        done = run("-a", root, "ls", "--format", "json")
        return len(json.loads(done.out)) == 3

    eventually(listed)
    for word, uid in (("王", "1.2.0"), ("김", "1.2.1"), ("иванов", "1.2.2")):
        found = json.loads(run("-a", root, "ls", word, "--format", "json").out)
        assert [one["StudyInstanceUID"] for one in found] == [uid]
    with Asker(service.port) as asker:
        found = asker.ask(PatientName="王*", StudyInstanceUID="")
        assert (found.status, found.texts("PatientName", "StudyInstanceUID")) == (
            SUCCESS,
            [("王^小东", "1.2.0")],
        )
        assert found.answers[0].text("SpecificCharacterSet") == "ISO_IR 192"
    # A query without a character set of its own is read in the default, too.
    with Asker(service.port) as asker:
        asked = encode({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""}, EXPLICIT)
        asker.begin(asked + encode_element(0x00100010, "PN", WANG))
        assert asker.finish().texts("StudyInstanceUID") == [("1.2.0",)]
    config = tmp_path / "settings.toml"
    config.write_text('default_charset = { "" = "GBK", KOREA = "EUC-KR" }')
    with web(root, tmp_path, "--config", str(config)) as browser:
        assert "王" in browser.get("/").body.decode()
        for uid, name in (("1.2.0", "王^小东"), ("1.2.1", "김^민수")):
            told = browser.get(f"/dicom-web/studies/{uid}/metadata", "application/dicom+json").json
            assert told[0]["00100010"]["Value"] == [{"Alphabetic": name}]


def labelled(label: str | None, name: bytes) -> bytes:
    return part10(SpecificCharacterSet=label, PatientName=name)


@pytest.mark.parametrize(
    ("default", "instance", "name"),
    [
        ("GBK", labelled(None, WANG), "王^小东"),
        ("CP936", labelled("ISO_IR 100", WANG), "王^小东"),
        ("GB18030", labelled("ISO_IR 100", "李^娜".encode("gbk")), "李^娜"),
        ("EUC-KR", labelled("ISO_IR 100", KIM), "김^민수"),
        ("SHIFT_JIS", labelled("", YAMADA), "山田^太郎"),
        ("ISO_IR 13", labelled("ISO_IR 100", YAMADA), "山田^太郎"),
        ("BIG5", labelled(None, ZHANG), "張^偉"),
        ("WINDOWS-1251", labelled("ISO_IR 100", IVANOV), "Иванов^Иван"),
        ("KOI8-R", labelled(None, "Петров".encode("koi8_r")), "Петров"),
        ("UTF-8", labelled("ISO_IR 100", "王^小东".encode()), "王^小东"),
        # What is labelled, or plausible, stays what it is.
        ("GBK", labelled("ISO_IR 100", "Müller^Jörg-Öznür".encode("latin_1")), "Müller^Jörg-Öznür"),
        ("GBK", labelled("ISO_IR 100", "Créées^Œ".encode("latin_1", "ignore")), "Créées^"),
        (
            "WINDOWS-1251",
            labelled("ISO_IR 100", "Bjørn^Åse 37°".encode("latin_1")),
            "Bjørn^Åse 37°",
        ),
        ("GBK", labelled("ISO_IR 144", "Иванов".encode("iso8859_5")), "Иванов"),
        ("GBK", labelled("ISO_IR 192", "Müller".encode()), "Müller"),
        ("BIG5", labelled("GBK", WANG), "王^小东"),
        # Unicode without a label is still found.
        ("GBK", labelled(None, "山田^太郎".encode()), "山田^太郎"),
        ("WINDOWS-1251", labelled(None, "Müller".encode()), "Müller"),
    ],
)
def test_imported_with_a_default(
    tmp_path: Path, run: Run, default: str, instance: bytes, name: str
) -> None:
    root = new_archive(tmp_path / "archive")
    file = tmp_path / "file.dcm"
    file.write_bytes(instance)
    assert run("-a", root, "import", "--default-charset", default, file).code == 0
    assert run("-a", root, "index", "--once").code == 0
    [study] = json.loads(run("-a", root, "ls", "--format", "json").out)
    assert study["PatientName"] == name.strip()
    [stored] = instances_in(root)
    assert (Path(root) / stored).read_bytes() == instance
    export = tmp_path / "ohif.json"
    done = run(
        "-a", root, "export", "--default-charset", default, "1.2.3", export, "--ohif", "http://x"
    )
    assert done.code == 0, done.err
    shown = json.loads(export.read_text())["studies"][0]["series"][0]["instances"][0]["metadata"]
    assert shown["PatientName"] == name.strip()


def test_a_line_made_again_says_what_the_first_said(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    file = tmp_path / "file.dcm"
    file.write_bytes(part10(PatientName=WANG))
    use_defaults(("BIG5", "SENDER=GBK"))
    with Archive.open(root) as archive:
        list(import_all(archive, sources([str(file)])))
    [manifest] = Path(root).glob("[0-9]*/*/*.jsonl")
    first = json.loads(manifest.read_text())
    manifest.unlink()
    with Indexer.open(root) as indexer:
        indexer.once()
    again = json.loads(manifest.read_text())
    assert again["origin"] == "recovered"
    assert again["PatientName"] == first["PatientName"]


@pytest.mark.parametrize("wrong", ["KLINGON", "GBK,BIG5", "CT1=", "A=GBK,A=BIG5", "UTF-16"])
def test_what_is_no_default(tmp_path: Path, run: Run, wrong: str) -> None:
    root = new_archive(tmp_path / "archive")
    done = run("-a", root, "import", "--default-charset", wrong, tmp_path / "file.dcm")
    assert done.code == 2
    assert "--default-charset" in done.err
