"""The commands ls, show and path as a person meets them: whole, through the root command."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.commands.ls import SHOWN
from plainpacs.indexer.output import formats as output
from plainpacs.indexer.output.listing import STUDY_COLUMNS
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import PYDICOM_FILES, instances_in, new_archive, store, tree

COMMAND = [sys.executable, "-m", "plainpacs"]


def fill(path: str) -> None:
    with Archive.open(path) as archive:
        for number in range(3):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=str(number))
        store(archive, SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", Modality="SR")
        store(
            archive,
            StudyInstanceUID="1.3",
            SeriesInstanceUID="1.3.1",
            SOPInstanceUID="1.3.1.1",
            SpecificCharacterSet="ISO_IR 192",
            PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
            PatientID="P2",
            StudyDate="2024.02.28",
            StudyDescription="=SUM(A1)\u202e",
        )
        store(
            archive,
            StudyInstanceUID="1.4",
            SeriesInstanceUID="1.4.1",
            SOPInstanceUID="1.4.1.1",
            StudyDate=None,
            PatientName=None,
        )
    with Indexer.open(path) as indexer:
        indexer.once()


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = new_archive(tmp_path / "a")
    fill(path)
    return path


def run(path: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PLAINPACS_ARCHIVE": path, **variables}
    env.pop("COLUMNS", None)
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=env, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def on_a_terminal(path: str, *arguments: str, columns: int = 100) -> str:
    """What a terminal of that width shows of standard output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {**os.environ, "PLAINPACS_ARCHIVE": path, "NO_COLOR": "1"}
    env.pop("COLUMNS", None)
    process = subprocess.Popen([*COMMAND, *arguments], stdout=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # Linux says EIO when the other side has gone
        pass
    os.close(ours)
    process.wait()
    return shown.decode().replace("\r\n", "\n")


def studies(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [json.loads(line)["StudyInstanceUID"] for line in done.stdout.splitlines()]


def test_ls_lists_newest_first_as_jsonl_when_piped(path: str) -> None:
    done = run(path, "ls")
    assert (done.returncode, done.stderr) == (0, "")
    assert studies(done) == ["1.3", "1.2.3", "1.4"]
    line = json.loads(done.stdout.splitlines()[1])
    index = orjson.loads(Path(path, "202401/1.2.3/study.json").read_bytes())
    del index["series"]
    assert line == index


def test_ls_formats(path: str) -> None:
    array = json.loads(run(path, "ls", "--format", "json").stdout)
    assert [study["StudyInstanceUID"] for study in array] == ["1.3", "1.2.3", "1.4"]
    rows = list(csv.DictReader(io.StringIO(run(path, "ls", "--format", "csv").stdout)))
    assert list(rows[0]) == list(STUDY_COLUMNS)
    assert rows[0]["StudyDescription"] == "'=SUM(A1)\u202e"
    assert rows[1]["ModalitiesInStudy"] == "CT\\SR"
    assert run(path, "ls", "--format", "paths").stdout.splitlines() == [
        f"{path}/202402/1.3",
        f"{path}/202401/1.2.3",
        f"{path}/undated/1.4",
    ]
    table = run(path, "ls", "--format", "table").stdout
    assert "Yamada, Tarou (山田 太郎)" in table
    assert "=SUM(A1)\ufffd" in table


def test_ls_terms(path: str) -> None:
    assert studies(run(path, "ls", "yamada")) == ["1.3"]
    assert studies(run(path, "ls", "山田")) == ["1.3"]
    assert studies(run(path, "ls", "PatientID=P1", "Modality=SR")) == ["1.2.3"]
    assert studies(run(path, "ls", "PatientID=P1", "PatientID=P2")) == ["1.3", "1.2.3", "1.4"]
    assert studies(run(path, "ls", "StudyDate=20240201-")) == ["1.3"]
    assert studies(run(path, "ls", "--month", "undated")) == ["1.4"]
    assert studies(run(path, "ls", "--stored", "1h", "--month", "202401")) == ["1.2.3"]


def test_ls_without_a_match(path: str) -> None:
    done = run(path, "ls", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "plainpacs: no study matches\n"
    done = run(path, "ls", "nobody", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)) == (1, [])
    done = run(path, "ls", "nobody", "--format", "table")
    assert (done.returncode, done.stdout) == (1, "")


def test_ls_of_a_new_archive(tmp_path: Path) -> None:
    done = run(new_archive(tmp_path / "a"), "ls")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no studies here yet" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "PatientID="],
        ["ls", "Patient=x"],
        ["ls", "--format", "xml"],
        ["ls", "--stored", "soon"],
        ["show"],
        ["show", "--last", "1.2.3"],
        ["path"],
        ["show", "1.2.3", "Modality=CT"],
    ],
)
def test_wrong_usage_is_exit_status_2(path: str, arguments: list[str]) -> None:
    done = run(path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip()


def many(path: str, studies: int) -> None:
    """A catalogue alone, of that many studies."""
    os.makedirs(Path(path, "202312"))
    lines = [
        orjson.dumps({"StudyInstanceUID": f"9.{n}", "StudyDate": "20231201", "PatientID": "M"})
        for n in range(studies)
    ]
    Path(path, "202312", "studies.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def test_a_terminal_shows_a_table_of_the_newest(path: str) -> None:
    many(path, 500)
    shown = on_a_terminal(path, "ls").splitlines()
    assert len(shown) == SHOWN + 1
    assert [line.split()[-1] for line in shown[1:4]] == ["1.3", "1.2.3", "9.0"]
    assert all(len(line) <= 100 for line in shown)
    assert len(on_a_terminal(path, "ls", "--all").splitlines()) == 503 + 1
    assert len(on_a_terminal(path, "ls", "--format", "paths").splitlines()) == 503
    assert len(run(path, "ls", "--format", "table").stdout.splitlines()) == 503 + 1


def test_how_many_more_there_are_is_said_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many(path, 1500)
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    result = CliRunner().invoke(cli.root, ["-a", path, "ls"])
    assert result.stderr == "1,453 older ones are not shown: narrow the search, or add --all\n"
    assert "older" not in result.stdout


def test_a_reader_that_goes_away_is_no_error(path: str) -> None:
    many(path, 20_000)
    for form in output.FORMATS:
        command = [*COMMAND, "-a", path, "ls", "--format", form]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 0


def test_results_that_cannot_be_written_are_an_error(path: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "-a", path, "ls"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 3
    assert done.stderr == b"plainpacs: cannot write the results: No space left on device\n"


def test_show_gives_study_json_as_it_is(path: str) -> None:
    done = run(path, "show", "1.2.3 ", "--format", "json")
    assert done.stdout.encode() == Path(path, "202401/1.2.3/study.json").read_bytes()
    line = run(path, "show", "1.2.3").stdout
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(done.stdout)


def test_show_with_instances(path: str) -> None:
    study = json.loads(run(path, "show", "1.2.3", "-v", "--format", "json").stdout)
    files = [[line["file"] for line in series["instances"]] for series in study["series"]]
    assert files == [["1.2.3.4.0.dcm", "1.2.3.4.1.dcm", "1.2.3.4.2.dcm"], ["1.2.3.5.1.dcm"]]
    assert study["series"][0]["instances"][0]["calling_ae"] == "CT1"
    listed = run(path, "show", "1.2.3", "-v", "--format", "paths").stdout.splitlines()
    expected = [name for name in instances_in(path) if "/1.2.3/" in name]
    assert listed == [f"{path}/{name}" for name in expected]
    text = run(path, "show", "1.2.3", "-v", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["SOPInstanceUID"] for row in rows][-1] == "1.2.3.5.1"
    assert [row["path"] for row in rows] == expected


def test_show_series(path: str) -> None:
    rows = list(csv.DictReader(io.StringIO(run(path, "show", "1.2.3", "--format", "csv").stdout)))
    assert [(row["SeriesInstanceUID"], row["Modality"]) for row in rows] == [
        ("1.2.3.4", "CT"),
        ("1.2.3.5", "SR"),
    ]
    assert {row["StudyInstanceUID"] for row in rows} == {"1.2.3"}
    assert run(path, "show", "1.2.3", "--format", "paths").stdout == f"{path}/202401/1.2.3\n"


def test_show_on_a_terminal(path: str) -> None:
    shown = on_a_terminal(path, "show", "1.3", "-v")
    assert "Yamada, Tarou (山田 太郎)  P2" in shown
    assert "2024-02-28" in shown
    assert "=SUM(A1)\ufffd" in shown
    assert "\u202e" not in shown
    assert shown.split()[-1] == "1.3.1.1"


def test_show_what_is_not_there(path: str) -> None:
    for uid, words in (
        ("2.7", "no study, series or instance 2.7 here"),
        ("7.7", "no study matches '7.7'"),
        ("1.2.3.4", "1.2.3.4 is not a study; it lies in the study 1.2.3"),
        ("../1.2.3", "no study matches '../1.2.3'"),
        ("x" * 65, "no study matches"),
    ):
        done = run(path, "show", uid)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr


def test_show_of_a_damaged_study_json_says_so_and_goes_on(path: str) -> None:
    index = Path(path, "202401/1.2.3/study.json")
    whole = index.read_bytes()
    index.write_bytes(whole[:100])
    done = run(path, "show", "1.2.3", "--format", "json")
    assert (done.returncode, done.stdout.encode()) == (0, whole)
    assert done.stderr == (
        "202401/1.2.3/study.json is missing or damaged: read from the manifests instead\n"
    )


def test_path(path: str) -> None:
    expected = {
        "1.2.3": "202401/1.2.3",
        "1.2.3.5": "202401/1.2.3/1.2.3.5",
        "1.3.1.1": "202402/1.3/1.3.1/1.3.1.1.dcm",
    }
    for uid, place in expected.items():
        done = run(path, "path", uid)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}/{place}\n", "")
        assert os.path.exists(done.stdout.strip())
    done = run(path, "path", "2.7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no study, series or instance 2.7" in done.stderr
    record = json.loads(run(path, "path", "1.3.1", "--format", "jsonl").stdout)
    assert record == {
        "path": f"{path}/202402/1.3/1.3.1",
        "StudyInstanceUID": "1.3",
        "SeriesInstanceUID": "1.3.1",
    }


def test_several_paths_are_printed_with_all_only(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive, SOPInstanceUID="1.2.3.4.9", StudyDate="20240201")
    done = run(path, "path", "1.2.3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "lies in 2 places: --all prints them" in done.stderr
    expected = [f"{path}/202401/1.2.3", f"{path}/202402/1.2.3"]
    assert run(path, "path", "1.2.3", "--all").stdout.splitlines() == expected
    listed = json.loads(run(path, "path", "1.2.3", "--all", "--format", "json").stdout)
    assert [place["path"] for place in listed] == expected


def test_the_commands_name_the_formats_and_have_an_example(path: str) -> None:
    for command in ("ls", "show", "path"):
        text = run(path, command, "--help").stdout
        assert f"plainpacs {command}" in text
        assert "Example" in text
        assert "jsonl" in text
    assert "StudyDate" in run(path, "ls", "--help").stdout


READS: list[list[str]] = [
    ["ls"],
    ["ls", "PatientID=P1"],
    ["ls", "--format", "table"],
    ["show", "1.2.3", "-v", "--format", "json"],
    ["show", "1.3", "--format", "table"],
    ["path", "1.2.3"],
    ["path", "1.2.3.4.1"],
    ["path", "1.3.1"],
]


def no_internal(path: str) -> None:
    shutil.rmtree(Path(path, ".plainpacs"))


def shut_internal(path: str) -> None:
    os.chmod(Path(path, ".plainpacs"), 0)


def no_indexes(path: str) -> None:
    no_internal(path)
    for derived in [*Path(path).glob("*/studies.jsonl"), *Path(path).glob("*/*/study.json")]:
        derived.unlink()


def unreadable_catalogue(path: str) -> None:
    for derived in Path(path).glob("*/studies.jsonl"):
        derived.unlink()
        derived.mkdir()


@pytest.mark.parametrize("lost", [no_internal, shut_internal, no_indexes, unreadable_catalogue])
def test_every_read_works_on_a_copy_and_never_writes(path: str, tmp_path: Path, lost: Any) -> None:
    copy = str(tmp_path / "copy")
    shutil.copytree(path, copy)
    expected = [run(path, *arguments) for arguments in READS]
    lost(copy)
    for folder, _, names in os.walk(copy):  # as root writes all the same, the tree is compared
        for name in names:
            os.chmod(Path(folder, name), 0o444)
        if not folder.endswith(".plainpacs"):
            os.chmod(folder, 0o555)
    before = tree(copy)
    for arguments, there in zip(READS, expected, strict=True):
        done = run(copy, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout == there.stdout.replace(path, copy)
    assert tree(copy) == before
    for folder, _, _ in os.walk(copy):
        os.chmod(folder, 0o755)


def test_formats_other_than_the_table_load_neither_rich_nor_pydicom(path: str) -> None:
    script = (
        "import sys; from plainpacs.archive.app import cli\n"
        "try: cli.root(args=sys.argv[1:], prog_name='plainpacs')\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'pydicom', 'pynetdicom', 'watchdog', 'numpy'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )
    for arguments in (["ls"], ["ls", "P1", "--format", "csv"], ["show", "1.3"], ["path", "1.3.1"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "-a", path, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "set()\n"


def test_real_instances_are_found_by_all_their_uids(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        for _ in import_all(archive, sources([str(PYDICOM_FILES)])):
            pass
    with Indexer.open(path) as indexer:
        indexer.once()

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli.root, ["-a", path, *arguments])

    listed = [json.loads(line) for line in invoke("ls").stdout.splitlines()]
    assert len(listed) > 20
    assert sum(study["NumberOfStudyRelatedInstances"] for study in listed) == len(
        instances_in(path)
    )
    for study in listed[::5]:
        uid = study["StudyInstanceUID"]
        assert uid in {
            json.loads(line)["StudyInstanceUID"]
            for line in invoke("ls", f"StudyInstanceUID={uid}").stdout.splitlines()
        }
        shown = json.loads(invoke("show", uid, "-v").stdout)
        series = shown.pop("series")
        assert shown == study
        for one in series:
            for line in one["instances"]:
                found = invoke("path", line["SOPInstanceUID"], "--all").stdout.splitlines()
                assert any(place.endswith(f"/{line['file']}") for place in found)
        assert invoke("show", uid, "-v", "--format", "table").exit_code == 0
    assert invoke("ls", "--format", "table").exit_code == 0
    assert invoke("ls", "--format", "csv").exit_code == 0
