"""The README and the guides are true: their commands are run, their tables name what there is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import Command

from plainpacs.archive.app import cli
from plainpacs.archive.app.retention_rule import RetentionRule
from plainpacs.archive.app.settings import TABLE, load
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.scp.receiver.receiver import Receiver
from tests.support.archives import eventually, instances_in, part10, tree
from tests.support.peer import dcmtk

CLONE = Path(__file__).resolve().parents[2]
GUIDES = {
    name: (CLONE / name).read_text()
    for name in (
        *("README.md", "archive/README.md", "archive/FORMAT.md", "indexer/README.md"),
        *("scp/README.md", "scp/CONFORMANCE.md", "scp/web/README.md", "tests/README.md"),
    )
}
TEXT = "\n".join(GUIDES.values())
STUDY = "1.2.840.113619.2.5.1762583153"
PLAINPACS = f'plainpacs() {{ {shlex.quote(sys.executable)} -m plainpacs "$@"; }}\n'


BLOCKS: list[str] = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def block_with(words: str) -> str:
    """The shell commands of the block that contains ``words``."""
    [block] = [one for one in BLOCKS if words in one]
    return block


def run(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs it with this home, from a folder that stands for the clone, and stays empty."""
    clone = home / "clone"
    clone.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PLAINPACS_")}
    done = subprocess.run(
        ["bash", "-euc", PLAINPACS + script],
        cwd=clone,
        env=env | {"TCP_NODELAY": "1", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert not list(clone.iterdir())
    return done


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """``~/dicom`` beside what the README calls FOLDER and FILE, with the study it shows."""
    run("plainpacs init ~/dicom", tmp_path)
    folder = tmp_path / "FOLDER"
    folder.mkdir()
    for number in range(3):
        raw = part10(
            StudyInstanceUID=STUDY,
            SeriesInstanceUID=f"{STUDY}.1",
            SOPInstanceUID=f"{STUDY}.1.{number + 1}",
        )
        (folder / f"{number}").write_bytes(raw)
    (tmp_path / "FILE").write_bytes(part10())
    return tmp_path / "dicom"


def test_five_minutes(archive: Path, tmp_path: Path) -> None:
    dcmtk("echoscu", "--version")
    receiver = Receiver(load({"bind": "127.0.0.1", "port": "0"}, environ={}))
    with Archive.open(str(archive)) as opened:
        receiver.start(opened)
        try:
            sending = block_with("echoscu").replace("11112", str(receiver.port))
            for line in sending.splitlines():
                tool, *arguments = shlex.split(line)
                done = dcmtk(tool, *(str(tmp_path / a) if a.isupper() and a in ("FOLDER", "FILE")
                                     else a for a in arguments))  # fmt: skip
                assert done.returncode == 0, f"{line}\n{done.stderr}"
        finally:
            receiver.stop()
    assert len(instances_in(archive)) == 4
    with Indexer.open(str(archive)) as indexer:
        indexer.once()
    reading = block_with("plainpacs ls doe")
    assert reading.startswith("cd ~/dicom\n")
    done = run(reading, tmp_path)
    assert done.stdout.count(STUDY) >= 4
    assert f"dicom/202401/{STUDY}\n" in done.stdout


def test_verifying(archive: Path, tmp_path: Path) -> None:
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    lists = "plainpacs verify --sums sha256 > ~/sums; sha256sum -c ~/sums"
    assert lists.split(" >", maxsplit=1)[0].replace("sha256", "blake3") in TEXT
    done = run(f"cd ~/dicom\n{block_with('plainpacs verify --fast')}{lists}", tmp_path)
    assert done.stdout.count(": OK") == 3


def test_exporting(archive: Path, tmp_path: Path) -> None:
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    run(f"cd ~/dicom\n{block_with('~/cd.zip --zip')}", tmp_path)
    run(f"cd ~/dicom\n{block_with('--deidentify')}", tmp_path)
    assert (tmp_path / "cd/DICOMDIR").is_file()
    assert (tmp_path / "cd.zip").is_file()
    assert (tmp_path / "ct.json").is_file()
    assert (tmp_path / "trial/DICOMDIR").is_file()


def starts(line: str, home: Path, says: str) -> None:
    """Runs a command that serves until it has said so, on ports that the system picks."""
    line = re.sub(r"--web \d+", "--web 0", line.partition(" #")[0].replace("~", str(home)))
    command = [sys.executable, "-P", "-m", *shlex.split(line), "--port", "0"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        eventually(lambda: says in (home / "log").read_text() or process.poll() is not None)
        assert says in (home / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_the_first_command(tmp_path: Path) -> None:
    command = block_with("pip install . &&").strip()
    assert command == "pip install . && plainpacs serve --create ~/dicom"
    assert TEXT.index("python3 -m venv .venv") < TEXT.index("pip install")
    starts(command.partition("&& ")[2], tmp_path, "try: storescu")
    assert (tmp_path / "dicom/plainpacs.json").exists()


SERVES = [
    block
    for block in BLOCKS
    if all(line.startswith("plainpacs serve ") for line in block.splitlines())
]


def test_every_way_to_serve(archive: Path, tmp_path: Path) -> None:
    """Of the blocks that have nothing else: hooks, character sets."""
    assert len(SERVES) >= 2
    for block in SERVES:
        for line in block.splitlines():
            starts(line, tmp_path, "try: storescu")


def test_the_web_page(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    _, alone, beside = block_with("--web 8042").splitlines()
    starts(alone, tmp_path, "http://127.0.0.1:")
    starts(beside, tmp_path, "http://127.0.0.1:")
    *_, viewer = block_with("--ohif ~/package").splitlines()
    (tmp_path / "package/dist").mkdir(parents=True)
    (tmp_path / "package/dist/index.html").write_text("<html></html>")
    starts(viewer, tmp_path, "http://127.0.0.1:")
    [package] = re.findall(r"@ohif/app@[\d.]+", TEXT)
    assert package in (CLONE / ".ci/run").read_text(), "what the tests of the viewer open"


def test_deciding_conflicts(archive: Path, tmp_path: Path) -> None:
    first, second = block_with("conflicts --keep first").replace("STUDY-UID", STUDY).splitlines()
    (tmp_path / "other").write_bytes(
        part10(
            StudyInstanceUID=STUDY,
            SeriesInstanceUID=f"{STUDY}.1",
            SOPInstanceUID=f"{STUDY}.1.1",
            PatientName="Doe^Joan",
        )
    )
    for line, names in ((first, "Doe, Jane"), (second, "Doe, Joan")):
        filled = "plainpacs import -a ~/dicom ~/FOLDER ~/other"
        run(filled, tmp_path)
        run(f"cd ~/dicom\n{line}\nplainpacs index --once", tmp_path)
        shown = run("cd ~/dicom; plainpacs ls --level instance --format csv", tmp_path).stdout
        assert names.replace(", ", "^") in shown
        assert not run("cd ~/dicom; plainpacs conflicts", tmp_path).stdout


def test_correcting(archive: Path, tmp_path: Path) -> None:
    for number, patient in enumerate(("P-17", "P-0017")):
        uid = f"1.2.4.{number}"
        content = part10(
            StudyInstanceUID=uid,
            SeriesInstanceUID=f"{uid}.1",
            SOPInstanceUID=f"{uid}.1.1",
            PatientID=patient,
            AccessionNumber="A17" if patient == "P-17" else "B1",
        )
        (tmp_path / "FOLDER" / patient).write_bytes(content)
    run("plainpacs import -a ~/dicom ~/FOLDER; plainpacs index --once -a ~/dicom", tmp_path)
    for line in block_with("plainpacs correct").replace("STUDY-UID", STUDY).splitlines():
        command = line.partition(" #")[0]
        run(f"cd ~/dicom\n{command} --yes\nplainpacs index --once", tmp_path)
    words = "StudyInstanceUID,PatientID,PatientSex,AccessionNumber"
    done = run(f"cd ~/dicom; plainpacs ls --format csv --fields {words}", tmp_path)
    rows = dict(line.split(",", 1) for line in done.stdout.splitlines()[1:])
    assert rows == {STUDY: "P1,F,", "1.2.4.0": "P-0017,,A18", "1.2.4.1": "P-0017,,B1"}


def test_deleting_and_restoring(archive: Path, tmp_path: Path) -> None:
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    lines = block_with("plainpacs restore").splitlines()
    after = []
    for line in lines:
        run(f"cd ~/dicom\n{line}", tmp_path)
        after.append(len(instances_in(archive)))
    assert after == [3, 0, 0, 3, 0]
    assert STUDY in run("cd ~/dicom; plainpacs forbidden", tmp_path).stdout


def test_query_and_retrieve(archive: Path, tmp_path: Path) -> None:
    dcmtk("findscu", "--version")
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    receiver = Receiver(load({"bind": "", "port": "0"}, environ={}))
    with Archive.open(str(archive)) as opened:
        receiver.start(opened)
        try:
            asking = block_with("findscu").replace("11112", str(receiver.port))
            done = run(asking.replace("=1.2.3 ", f"={STUDY} "), tmp_path)
        finally:
            receiver.stop()
    assert STUDY in done.stdout + done.stderr
    assert len(list((tmp_path / "retrieved").iterdir())) == 3


def test_contributing() -> None:
    """Its commands are those of CI, on what there is."""
    lines = block_with("pip install -e").splitlines()
    for command in lines[-1].split(" && "):
        assert f"\n{command}\n" in (CLONE / ".ci/run").read_text()
    for line in lines[1:-1]:
        assert line.startswith("pytest -q ")
        assert all((CLONE / word).exists() for word in line.split() if "/" in word)
    assert '"quick: ' in (CLONE / "pyproject.toml").read_text()


def test_the_container() -> None:
    """Docker is not at hand: what it is told fits the Dockerfile."""
    dockerfile = (CLONE / "Dockerfile").read_text()
    _, *runs = map(shlex.split, block_with("docker build").splitlines())
    for command in runs:
        assert command[:2] == ["docker", "run"]
        options, arguments = command[2 : command.index("plainpacs")], command[-2:]
        values = dict(zip(options[-2::-2], options[::-2], strict=False))
        assert values["-v"] == "plainpacs:/archive"
        assert "PLAINPACS_ARCHIVE=/archive" in dockerfile
        if arguments == ["init", "/archive"]:
            continue
        assert f"EXPOSE {values['-p'].partition(':')[2]}\n" in dockerfile
        assert load({}, environ=dict([values["-e"].split("=")])).aet == ("ARCHIVE",)


def test_looking(archive: Path, tmp_path: Path) -> None:
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    run(f"cd ~/dicom\n{block_with('plainpacs links')}", tmp_path)
    assert (tmp_path / "people/Doe, Jane [P1]/2024-01-31 CT/CT").is_dir()
    assert (tmp_path / "sheet.png").read_bytes()[1:4] == b"PNG"


def test_from_python(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    [shown] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert shown.count('"/srv/dicom"') == 1
    for modality in ("MR", "CT"):
        names: dict[str, Any] = {}
        exec(shown.replace("/srv/dicom", str(archive)).replace("=MR", f"={modality}"), names)
        assert ("header" in names) == (modality == "CT")
    [row] = names["table"].to_dict("records")
    assert row["SeriesInstanceUID"] == f"{STUDY}.1"


def test_import_and_backup(archive: Path, tmp_path: Path) -> None:
    command = block_with("plainpacs import").strip()
    assert command.startswith("plainpacs import ")
    run("cd ~/dicom; plainpacs import ../FOLDER ../FILE", tmp_path)
    backup = block_with("rsync").replace("/srv/dicom/", "~/dicom/", 1)
    run(backup.replace("backup:/srv/dicom/", "~/copy/"), tmp_path)
    assert tree(tmp_path / "copy") == tree(archive)
    assert not (tmp_path / "copy/.plainpacs/pending").exists()
    assert (tmp_path / "copy/.plainpacs/conflicts").exists()
    run("plainpacs index --once -a ~/copy; plainpacs ls -a ~/copy", tmp_path)


def test_other_archives(archive: Path, tmp_path: Path) -> None:
    run("plainpacs import -a ~/dicom ~/FOLDER", tmp_path)
    served = {"bind": "127.0.0.1", "port": "0", "called_ae": "any"}
    receiver = Receiver(load(served, environ={}))
    with Archive.open(str(archive)) as opened:
        receiver.start(opened)
        try:
            settings = (
                "plainpacs init ~/other\n"
                "export PLAINPACS_ARCHIVE=~/other PLAINPACS_CONFIG=~/p.toml\n"
            )
            (tmp_path / "p.toml").write_text(f'[nodes]\nPACS = "127.0.0.1:{receiver.port}"\n')
            run(settings + block_with("plainpacs echo PACS"), tmp_path)
        finally:
            receiver.stop()
    assert tree(tmp_path / "other").keys() >= set(instances_in(archive))


def test_each_command_is_in_the_table_of_one_guide() -> None:
    tables = [
        table
        for text in GUIDES.values()
        for table in re.findall(r"^\| command \| does \|\n(.*?)\n\n", text, re.M | re.DOTALL)
    ]
    named = [name for table in tables for name in re.findall(r"^\| `([a-z]+)", table, re.M)]
    assert sorted(named) == sorted(cli.COMMANDS)


def test_the_readme_is_short() -> None:
    assert len(GUIDES["README.md"].splitlines()) <= 160


RUN_HERE = (
    *("python3 -m venv", "pip install . &&", "echoscu"),
    *(
        "plainpacs import",
        "plainpacs ls doe",
        "conflicts --keep",
        "plainpacs correct",
        "plainpacs restore",
        "rsync",
    ),
    *("plainpacs verify", "plainpacs links", "~/cd.zip --zip", "--deidentify", "docker build"),
    *("findscu", "plainpacs echo PACS", "--web 8042", "--ohif ~/package"),
    *("pip install -e",),
)
"""Of each block of commands that a test of this module runs."""
RUN_ELSEWHERE = {"--tls-cert": "tests/scp/test_tls.py", "pip install '.[test]' &&": ".ci/run"}


def test_every_block_of_commands_is_run_by_a_test() -> None:
    for block in set(BLOCKS) - set(SERVES):
        assert sum(words in block for words in (*RUN_HERE, *RUN_ELSEWHERE)) == 1, block
    for words in RUN_HERE:
        assert block_with(words)


def test_no_example_writes_into_the_clone() -> None:
    """Of the README, the help texts and the deploy files."""
    texts = [TEXT, (CLONE / "Dockerfile").read_text()]
    for room in ("archive", "indexer", "scp"):
        for path in (CLONE / room).rglob("*"):
            if path.suffix in (".py", ".service", ".toml"):
                texts.append(path.read_text())
    inside = r"plainpacs [a-z]+ [^\n`]*?(?<![\w.])(\.\.?/[a-z][\w./-]*)"
    assert [found[0] for text in texts for found in re.finditer(inside, text)] == []


def test_every_flag_named_exists() -> None:
    known = {declaration.flag for declaration in TABLE} | {"--create", "--config", "--help"}
    group = cli.root
    context = group.make_context("plainpacs", [])
    for name in cli.COMMANDS:
        command = group.get_command(context, name)
        assert isinstance(command, Command)
        known |= {flag for option in command.params for flag in option.opts}
    of_others = {"--fork", "--delete", "--exclude", "--dist", "--pack-destination", "--check"}
    of_others |= {"--quick", "--case", "--markdown", "--peers", "--dir"}  # the benchmarks'
    of_others |= {"--minutes", "--cases"}  # of the soak and the fuzzer
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - of_others
    assert named <= known
    assert "--sync" in named


def test_the_settings_shown_are_settings(tmp_path: Path) -> None:
    config = tmp_path / "plainpacs.toml"
    shown = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    found = [load({}, str(config), {}) for text in shown if config.write_text(text)]
    assert ("DRDCM", "ARCHIVE") in [one.aet for one in found]
    [rules] = [one.retention for one in found if one.retention]
    for rule in rules:
        parse(RetentionRule.parse(rule).terms)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", GUIDES)
def test_its_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", GUIDES[name]):
        target, _, anchor = link.partition("#")
        path = (CLONE / name).parent / target if target else CLONE / name
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.read_text()), link
    for module in re.findall(r"python -m (tests\.[a-z.]+)", GUIDES[name]):
        path = CLONE / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in re.findall(r"`((?:tests|archive|indexer|scp)/[\w./]+)`", GUIDES[name]):
        assert (CLONE / path).exists(), path
