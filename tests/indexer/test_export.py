"""Exports: File-sets that others can read, zips, and the document for OHIF."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from click.testing import CliRunner, Result
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence

from plainpacs.archive.app import cli
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.export import destination
from plainpacs.indexer.export import source as export_source
from plainpacs.indexer.export.dicomdir_records import WANTED
from plainpacs.indexer.export.file_set import chosen
from plainpacs.indexer.query.find import by_number
from tests.support.archives import instances_in, new_archive, part10, store, tree
from tests.support.peer import dcmtk

SERIES = "1.2.3.4"
WHOLE: dict[str, str] = {"SeriesNumber": "7", "SpecificCharacterSet": "ISO_IR 192"}


def export(root: str | Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.root, ["-a", str(root), "export", *arguments])


def load(folder: Path) -> FileSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # real files have values that pydicom finds fault with
        found = FileSet(str(folder / "DICOMDIR"))
    found._stage["t"].cleanup()  # a folder that it makes for changes, and warns of at the end
    return found


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An archive of two studies: one of two series with three instances each, one of one."""
    path = new_archive(tmp_path / "archive")
    with Archive.open(path) as archive:
        for number in range(6):
            store(
                archive,
                SeriesInstanceUID=f"{SERIES}.{number % 2}",
                SeriesNumber=str(9 - number % 2),
                SOPInstanceUID=f"{SERIES}.9.{number}",
                InstanceNumber=str(10 - number),
                PatientName="Müller^Änne",
                SpecificCharacterSet="ISO_IR 192",
            )
        store(archive, StudyInstanceUID="5.1", SeriesInstanceUID="5.1.1", SOPInstanceUID="5.1.1.1")
    return path


# --- real files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, real_folders: tuple[Path, ...]
) -> tuple[str, list[str]]:
    """An archive of every real file that can be stored, and its studies."""
    path = new_archive(tmp_path_factory.mktemp("real") / "archive")
    with Archive.open(path, sync=False) as archive:
        for _ in import_all(archive, sources([str(folder) for folder in real_folders])):
            pass
    studies = {Path(name).parts[1] for name in instances_in(path)}
    assert len(studies) > 20
    return path, sorted(studies)


@pytest.fixture(scope="module")
def file_set(real: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, studies = real
    out = tmp_path_factory.mktemp("out") / "cd"
    done = export(root, *studies, str(out))
    assert done.exit_code in (0, 1), done.output
    assert (done.exit_code == 1) == ("UNLISTED" in done.stderr) == (out / "UNLISTED").exists()
    return out


def test_every_real_file_is_exported_as_it_is(real: tuple[str, list[str]], file_set: Path) -> None:
    stored = {name: digest for name, digest in tree(real[0]).items() if name.endswith(".dcm")}
    exported = {name: digest for name, digest in tree(file_set).items() if name != "DICOMDIR"}
    assert sorted(stored.values()) == sorted(exported.values())
    for name in exported:
        for part in Path(name).parts:
            assert 1 <= len(part) <= 8
            assert set(part) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
        assert len(name) <= 35


def test_real_files_load_as_a_file_set(file_set: Path) -> None:
    found = load(file_set)
    files = {path for path in instances_of(file_set) if not path.startswith("UNLISTED")}
    assert {str(Path(i.path).relative_to(file_set)) for i in found} == files
    assert not found.is_staged, "pydicom would name them in the same way"
    assert len(files) > 50
    for instance in found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data_set = pydicom.dcmread(instance.path, stop_before_pixels=True)
            assert instance.SOPInstanceUID == data_set.SOPInstanceUID.rstrip()
            assert instance.SOPClassUID == data_set.SOPClassUID
            assert instance.TransferSyntaxUID == data_set.file_meta.TransferSyntaxUID


def instances_of(folder: Path) -> set[str]:
    return {name for name in tree(folder) if name != "DICOMDIR"}


def test_dcmtk_reads_the_dicomdir(file_set: Path) -> None:
    done = dcmtk("dcmdump", "+P", "0004,1430", str(file_set / "DICOMDIR"))
    assert done.returncode == 0
    assert done.stderr == ""
    kinds = [line.split("[")[1].split("]")[0] for line in done.stdout.splitlines()]
    leaves = [kind for kind in kinds if kind not in ("PATIENT", "STUDY", "SERIES")]
    described = [path for path in instances_of(file_set) if not path.startswith("UNLISTED")]
    assert len(leaves) == len(described)
    assert {"IMAGE", "SR DOCUMENT", "RT PLAN", "PRESENTATION"} & set(leaves)


def test_dcdirdmp_reads_the_dicomdir(file_set: Path) -> None:
    if shutil.which("dcdirdmp") is None:
        words = "dcdirdmp is not installed (apt install dicom3tools)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    done = subprocess.run(
        ["dcdirdmp", str(file_set / "DICOMDIR")], capture_output=True, check=False
    )
    said = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0
    assert "Error" not in said
    assert said.count(" -> ") == len(load(file_set))


def test_real_files_as_a_zip(real: tuple[str, list[str]], file_set: Path, tmp_path: Path) -> None:
    root, studies = real
    out = tmp_path / "cd.zip"
    assert export(root, *studies, str(out), "--zip").exit_code in (0, 1)
    whole(out)
    with zipfile.ZipFile(out) as found:
        found.extractall(tmp_path / "cd")
    unpacked = tree(tmp_path / "cd")
    expected = tree(file_set)
    assert unpacked.keys() == expected.keys()
    assert {unpacked[name] == expected[name] for name in expected if name != "DICOMDIR"} == {True}


def whole(path: Path) -> None:
    """Whether ``unzip`` finds no fault; where it is missing Python looks."""
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tq", str(path)], capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None


def test_the_document_of_real_files(real: tuple[str, list[str]], tmp_path: Path) -> None:
    root, studies = real
    out = tmp_path / "cd.json"
    export(root, *studies, str(out), "--ohif", "https://files.example.org/archive/")
    prefix = "dicomweb:https://files.example.org/archive/"
    seen = set()
    for study in json.loads(out.read_text())["studies"]:
        assert study["StudyInstanceUID"]
        assert study["PatientID"]
        for series in study["series"]:
            assert series["SeriesInstanceUID"]
            assert series["instances"]
            for instance in series["instances"]:
                url, _, frame = instance["url"].partition("?frame=")
                assert url.startswith(prefix)
                path = url.removeprefix(prefix)
                seen.add(path)
                metadata = instance["metadata"]
                assert metadata["SOPInstanceUID"] == Path(path).stem
                if frame:
                    assert "NumberOfFrames" not in metadata
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    data_set = pydicom.dcmread(
                        os.path.join(root, path), stop_before_pixels=True, force=True
                    )
                    for keyword in ("Rows", "Columns", "BitsStored", "SOPClassUID", "Modality"):
                        assert metadata.get(keyword) == (data_set.get(keyword) or None), keyword
                    for keyword in ("PixelSpacing", "ImagePositionPatient"):
                        if keyword in data_set and data_set.get(keyword):
                            own = [float(value) for value in data_set[keyword].value]
                            assert [float(value) for value in metadata[keyword]] == own
    assert seen <= set(instances_in(root))
    assert len(seen) > 0.95 * len(instances_in(root)), "a few are cut short"


# --- what is exported, in which order, and how it is described ------------------------------------


def test_a_study_a_series_an_instance(root: str, tmp_path: Path) -> None:
    for number, (uids, count) in enumerate(
        [(["1.2.3"], 6), ([f"{SERIES}.1"], 3), ([f"{SERIES}.9.4"], 1), (["1.2.3", "5.1"], 7)]
    ):
        out = tmp_path / f"out{number}"
        done = export(root, *uids, str(out))
        assert done.exit_code == 0, done.output
        assert len(instances_of(out)) == count == len(load(out))
        assert f"{count} instance" in done.stderr
        assert done.stdout == ""


def test_the_order_is_that_of_a_person(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(root, "1.2.3", str(out))
    read = [pydicom.dcmread(out / name) for name in sorted(instances_of(out))]
    numbers = [(data_set.SeriesNumber, data_set.InstanceNumber) for data_set in read]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 6
    records = [instance.node._record for instance in load(out)]
    assert [record.InstanceNumber for record in records] == [number for _, number in numbers]


def test_what_a_record_says(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export(root, "1.2.3", "5.1", str(out))
    assert "stand-ins" in done.stderr
    assert "StudyID (2)" in done.stderr
    assert "PatientID" not in done.stderr
    found = load(out)
    assert sorted(map(str, found.find_values("PatientName"))) == ["Doe^Jane", "Müller^Änne"]
    assert found.find_values("StudyID") == ["1"]
    assert sorted(found.find_values("SeriesNumber")) == [1, 8, 9]
    assert "Müller" not in "".join(tree(out)), "no names in file names"


def test_patients_with_one_id_and_two_names_stay_apart(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(root, "1.2.3", "5.1", str(out))
    assert sorted(name for name in os.listdir(out) if name != "DICOMDIR") == [
        "PT000000",
        "PT000001",
    ]


def test_studies_without_a_patient_id_stay_apart(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    with Archive.open(root) as archive:
        for study in ("1.1", "1.2"):
            store(
                archive,
                PatientID=None,
                PatientName=None,
                StudyDate=None,
                StudyInstanceUID=study,
                SOPInstanceUID=f"{study}.3",
            )
    out = tmp_path / "out"
    done = export(root, "1.1", "1.2", str(out))
    assert "PatientID (2)" in done.stderr
    assert sorted(load(out).find_values("PatientID")) == ["1.1", "1.2"]
    data_set = pydicom.dcmread(out / "PT000000/ST000000/SE000000/IM000000")
    assert "PatientID" not in data_set


def test_short_names(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(root, "1.2.3", str(out), "--short").exit_code == 0
    assert instances_of(out) == {f"000/{number:03}" for number in range(6)}
    assert len(load(out)) == 6


def report(**changes: Any) -> bytes:
    """A Part 10 file of a report, as pydicom writes it."""
    import io

    content = Dataset()
    content.RelationshipType = "HAS CONCEPT MOD"
    content.ValueType = "TEXT"
    content.TextValue = "what modifies the title"
    more = Dataset()
    more.RelationshipType = "CONTAINS"
    more.ValueType = "TEXT"
    more.TextValue = "the findings"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "18748-4", "LN", "Report"
    data_set = pydicom.dcmread(io.BytesIO(part10(**WHOLE)))
    data_set.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    del data_set.PixelData
    data_set.Modality = "SR"
    data_set.InstanceNumber = 1
    data_set.CompletionFlag, data_set.VerificationFlag = "COMPLETE", "UNVERIFIED"
    data_set.ContentDate, data_set.ContentTime = "20240131", "101500"
    data_set.ConceptNameCodeSequence = Sequence([title])
    data_set.ContentSequence = Sequence([content, more])
    for keyword, value in changes.items():
        if value is None:
            delattr(data_set, keyword)
        else:
            setattr(data_set, keyword, value)
    written = io.BytesIO()
    data_set.save_as(written)
    return written.getvalue()


def imported(root: str, tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(raw)
    with Archive.open(root) as archive:
        [result] = list(import_all(archive, sources([str(file)])))
    assert result.stored, result.error


def test_a_report_and_one_that_cannot_be_described(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    imported(root, tmp_path, report())
    imported(root, tmp_path, report(SOPInstanceUID="1.2.3.4.6", CompletionFlag=None))
    out = tmp_path / "out"
    done = export(root, "1.2.3", str(out))
    assert done.exit_code == 1
    path = "202401/1.2.3/1.2.3.4/1.2.3.4.6.dcm"
    assert f"{path}: it has no CompletionFlag" in done.stderr
    assert "UNLISTED/FI000000" in done.stderr
    assert tree(out)["UNLISTED/FI000000"] == tree(root)[path]
    [described] = load(out)
    record = described.node._record
    assert record.DirectoryRecordType == "SR DOCUMENT"
    assert described.FileID == os.path.join("PT000000", "ST000000", "SE000000", "SR000000")
    [modifier] = record.ContentSequence
    assert modifier.TextValue == "what modifies the title"
    assert record.ConceptNameCodeSequence[0].CodeMeaning == "Report"
    assert dcmtk("dcmdump", str(out / "DICOMDIR")).stderr == ""


def test_a_damaged_instance_is_exported_and_named(root: str, tmp_path: Path) -> None:
    path = Path(root, "202401/5.1/5.1.1/5.1.1.1.dcm")
    cut = path.read_bytes()[:400]
    path.unlink()
    path.write_bytes(cut)
    out = tmp_path / "out"
    done = export(root, "5.1", str(out))
    assert done.exit_code == 1
    assert "UNLISTED/FI000000" in done.stderr
    assert (out / "UNLISTED/FI000000").read_bytes() == cut
    assert dcmtk("dcmdump", str(out / "DICOMDIR")).returncode == 0


def test_nothing_is_written_when_a_uid_is_not_there(root: str, tmp_path: Path) -> None:
    done = export(root, "1.2.3", "9.9.9", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "9.9.9" in str(done.exception)
    assert sorted(os.listdir(tmp_path)) == ["archive"]


# --- OUT ----------------------------------------------------------------------------------------


def test_what_is_there_is_not_overwritten(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert export(root, "5.1", str(out)).exit_code == 0, "an empty folder will do"
    before = tree(out)
    again = export(root, "1.2.3", str(out))
    assert "add --force" in str(again.exception)
    assert tree(out) == before
    assert export(root, "1.2.3", str(out), "--force").exit_code == 0
    assert len(instances_of(out)) == 6
    assert sorted(os.listdir(tmp_path)) == ["archive", "out"]


def test_force_replaces_nothing_but_an_export(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years")
    done = export(root, "5.1", str(out), "--force")
    assert "left alone" in str(done.exception)
    assert os.listdir(out) == ["thesis.txt"]


@pytest.mark.parametrize("how", [["--zip"], ["--ohif", "https://x.org"]])
def test_a_file_that_is_there(root: str, tmp_path: Path, how: list[str]) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert "add --force" in str(export(root, "5.1", str(out), *how).exception)
    assert out.read_text() == "mine"
    assert export(root, "5.1", str(out), *how, "--force").exit_code == 0
    assert out.read_bytes() != b"mine"


def test_a_device_is_never_replaced(root: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = export(root, "5.1", str(pipe), "--zip", "--force")
    assert "is no file" in str(done.exception)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{root}/202401/new"], "lies in the archive"),
        (["{tmp}/no/such"], "make its folder first"),
        (["-"], "add --zip"),
        (["{tmp}/o", "--ohif", "x", "--zip"], "neither"),
        (["{tmp}/o", "--ohif", "files.example.org"], "no URL"),
        (["{tmp}/o", "--ohif", "https://x.org/?a=1"], "without ?"),
    ],
)
def test_wrong_usage(root: str, tmp_path: Path, arguments: list[str], words: str) -> None:
    before = tree(root, internal=True)
    filled = [text.format(root=root, tmp=tmp_path) for text in arguments]
    done = export(root, "5.1", *filled)
    assert words in str(done.exception)
    assert tree(root, internal=True) == before
    assert os.listdir(tmp_path) == ["archive"]


@pytest.mark.parametrize("how", [[], ["--zip"], ["--ohif", "https://x.org"]])
def test_unfinished_work_never_looks_finished(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    """The disk fills up in the middle: OUT is not there, nothing is left, and the words say why."""
    fails_after(monkeypatch, 3 if not how else 1)
    done = export(root, "1.2.3", str(tmp_path / "out"), *how)
    assert "No space left" in str(done.exception)
    assert os.listdir(tmp_path) == ["archive"]


def test_a_file_system_that_syncs_no_folders(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(destination.durable, "sync_folder", cannot)
    assert export(root, "1.2.3", str(tmp_path / "out")).exit_code == 0
    assert len(instances_of(tmp_path / "out")) == 6


def fails_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    left = [count]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        return call

    for name in ("copy_range", "write_all"):
        real = getattr(destination.durable, name)
        monkeypatch.setattr(destination.durable, name, counted(real))


def test_killed_in_the_middle(root: str, tmp_path: Path) -> None:
    """Killed before the renaming, nothing has the name of the export."""
    script = (
        "import os, sys; from plainpacs.archive.app import cli\n"
        "from plainpacs.archive.tree import durable\n"
        "durable.rename = lambda *a, **n: os.kill(os.getpid(), 9)\n"
        "cli.main(sys.argv[1:])"
    )
    for how in ([], ["--zip"], ["--ohif", "https://x.org"]):
        arguments = ["-a", root, "export", "1.2.3", str(tmp_path / "out"), *how]
        done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
        assert done.returncode == -9
    left = [name for name in os.listdir(tmp_path) if name != "archive"]
    assert len(left) == 3
    assert all(name.startswith(".out.") and name.endswith(".unfinished") for name in left)


def test_an_instance_removed_meanwhile(root: str, tmp_path: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        [one] = chosen(fd, root, [Target("202401", "5.1")], print)
        Path(root, "202401/5.1/5.1.1/5.1.1.1.dcm").unlink()
        with pytest.raises(Exception, match="export again"):
            export_source.Source(fd, one.key)
    finally:
        os.close(fd)


# --- a pipe, and size ---------------------------------------------------------------------------


def piped(root: str, *arguments: str) -> bytes:
    command = [sys.executable, "-m", "plainpacs", "-a", root, "export", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_zip_into_a_pipe(root: str, tmp_path: Path) -> None:
    (tmp_path / "piped.zip").write_bytes(piped(root, "1.2.3", "-", "--zip"))
    whole(tmp_path / "piped.zip")
    names = zipfile.ZipFile(tmp_path / "piped.zip").namelist()
    assert names[-1] == "DICOMDIR"
    assert len(names) == 7


def test_a_document_into_a_pipe(root: str) -> None:
    [study] = json.loads(piped(root, "5.1", "-", "--ohif", "https://x.org"))["studies"]
    assert study["NumInstances"] == 1


def test_a_reader_who_goes_away(root: str) -> None:
    script = f"'{sys.executable}' -m plainpacs -a '{root}' export 1.2.3 - --zip | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_a_zip_is_zip64(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beyond 4 GB, and 65,535 entries: with limits so low that this is beyond them."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    out = tmp_path / "out.zip"
    assert export(root, "1.2.3", str(out), "--zip").exit_code == 0
    assert b"PK\x06\x06" in out.read_bytes(), "it ends as zip64 does"
    monkeypatch.undo()
    whole(out)


def test_the_bytes_of_the_kernels_copy_and_of_the_plain_one(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(root, "1.2.3", str(tmp_path / "one"))

    def cannot(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(export_source.durable, "copy_range", cannot)
    export(root, "1.2.3", str(tmp_path / "two"))
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert {name: one[name] for name in one if name != "DICOMDIR"} == {
        name: two[name] for name in two if name != "DICOMDIR"
    }


PEAK = """
import sys
from plainpacs.archive.app import cli
try:
    cli.main(sys.argv[1:])
finally:
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(peak[0].split()[1], file=sys.stderr)
"""


@pytest.mark.parametrize("how", [[], ["--zip"], ["--ohif", "https://x.org"]])
def test_memory_does_not_grow_with_the_pixels(tmp_path: Path, how: list[str]) -> None:
    peaks = []
    for number, size in enumerate((1 << 10, 24 << 20)):
        root = new_archive(tmp_path / f"archive{number}")
        with Archive.open(root, sync=False) as archive:
            for instance in range(3):
                store(archive, SOPInstanceUID=f"1.2.9.{instance}", PixelData=bytes(size))
        command = [sys.executable, "-c", PEAK, "-a", root, "export", "1.2.3"]
        done = subprocess.run(
            [*command, str(tmp_path / f"out{number}"), *how],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stderr.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 12_000, f"{peaks} kB"


# --- the document -------------------------------------------------------------------------------


def document(root: str, tmp_path: Path, *uids: str) -> Any:
    out = tmp_path / "out.json"
    done = export(root, *uids, str(out), "--ohif", "https://x.org/a", "--force")
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text())


def test_a_document(root: str, tmp_path: Path) -> None:
    found = document(root, tmp_path, "1.2.3", "5.1")
    first, second = found["studies"]
    assert first["StudyInstanceUID"] == "1.2.3"
    assert first["PatientName"] == "Müller^Änne"
    assert (first["NumInstances"], first["Modalities"]) == (6, "CT")
    assert second["NumInstances"] == 1
    assert [series["SeriesNumber"] for series in first["series"]] == [8, 9]
    assert first["series"] == sorted(first["series"], key=by_number)
    assert [len(series["instances"]) for series in first["series"]] == [3, 3]
    instance = first["series"][0]["instances"][0]
    uid = instance["metadata"]["SOPInstanceUID"]
    assert instance["url"] == f"dicomweb:https://x.org/a/202401/1.2.3/{SERIES}.1/{uid}.dcm"
    assert instance["metadata"]["SeriesInstanceUID"] == f"{SERIES}.1"
    assert "PixelData" not in instance["metadata"]


def test_frames_have_entries_of_their_own(tmp_path: Path) -> None:
    import io

    data_set = pydicom.dcmread(io.BytesIO(part10(**WHOLE)))
    data_set.Rows = data_set.Columns = 8
    data_set.NumberOfFrames = 2
    measures = Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    data_set.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number in range(2):
        position = Dataset()
        position.ImagePositionPatient = [0, 0, number * 2.5]
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    data_set.PerFrameFunctionalGroupsSequence = Sequence(frames)
    written = io.BytesIO()
    data_set.save_as(written)
    root = new_archive(tmp_path / "archive")
    imported(root, tmp_path, written.getvalue())
    [study] = document(root, tmp_path, "1.2.3")["studies"]
    one, two = study["series"][0]["instances"]
    assert one["url"].endswith("/1.2.3.4.5.dcm?frame=1")
    assert two["url"].endswith("/1.2.3.4.5.dcm?frame=2")
    assert one["metadata"]["PixelSpacing"] == [0.5, 0.5]
    assert one["metadata"]["ImagePositionPatient"] == [0, 0, 0]
    assert two["metadata"]["ImagePositionPatient"] == [0, 0, 2.5]
    assert "PerFrameFunctionalGroupsSequence" not in one["metadata"]


# --- the archive --------------------------------------------------------------------------------


def test_nothing_is_written_into_an_archive_at_rest(root: str, tmp_path: Path) -> None:
    before = tree(root, internal=True)
    export(root, "1.2.3", str(tmp_path / "out"))
    assert tree(root, internal=True) == before


def test_the_audit_log_says_so_while_a_service_is_at_work(root: str, tmp_path: Path) -> None:
    with Archive.open(root):
        export(root, "1.2.3", "5.1", str(tmp_path / "out"))
    [log] = Path(root, ".plainpacs/audit").iterdir()
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    said = [(line["event"], line["StudyInstanceUID"], line["instances"]) for line in lines]
    assert said == [("export", "1.2.3", 6), ("export", "5.1", 1)]
    assert "ller" not in text
    assert str(tmp_path) not in text


def test_the_elements_of_a_record_are_enough(root: str) -> None:
    """What the DICOMDIR needs of a header is asked for: the rest is not even kept."""
    fd = os.open(root, os.O_RDONLY)
    try:
        [one] = chosen(fd, root, [Target("202401", "5.1")], print)
        with export_source.Source(fd, one.key) as source:
            meta, elements = source.header(WANTED)
    finally:
        os.close(fd)
    assert meta.transfer_syntax == EXPLICIT_LITTLE_ENDIAN
    assert set(elements) <= WANTED
    assert 0x0020000D in elements
