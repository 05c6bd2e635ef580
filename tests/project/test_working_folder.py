"""No program of ours imports from the folder that it happens to be started in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pydicom
import pytest

from tests.project.test_directions import modules
from tests.scp.test_retrieve import STUDY_GET, asking, get, keys, role
from tests.support.archives import eventually, instances_in
from tests.support.peer import EVRLE, MR

COMMAND = Path(sys.executable).parent / "plainpacs"
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
TRAP = """open(__file__ + ".ran", "w").close()
raise RuntimeError("imported from the working folder")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a trap in the place of every module that a program of ours might import."""
    folder = tmp_path / "folder"
    folder.mkdir()
    needed = {
        re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in requires("plainpacs") or ()
    }
    imported = {"PIL", "prometheus_client", "plainpacs", "gdcm", "jpeg_ls", "openjpeg", "rle"}
    for name in sys.stdlib_module_names | needed | imported:
        (folder / f"{name}.py").write_text(TRAP)
    assert {"orjson.py", "pydicom.py", "numpy.py", "json.py"} <= {p.name for p in folder.iterdir()}
    yield folder
    assert sorted(path.stem for path in folder.glob("*.ran")) == []


def run(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_traps_work(tmp_path: Path) -> None:
    (tmp_path / "orjson.py").write_text(TRAP)
    done = subprocess.run(
        [sys.executable, "-m", "plainpacs", "ls"], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"imported from the working folder" in done.stderr


def test_a_whole_life_in_a_folder_of_traps(folder: Path, tmp_path: Path) -> None:
    """What is received, imported, indexed, told to hooks, decompressed, compared and pictured."""
    pytest.importorskip("PIL")
    root, log, told = tmp_path / "archive", tmp_path / "log", tmp_path / "told"
    rle, native = TEST_FILES / "MR_small_RLE.dcm", TEST_FILES / "MR_small.dcm"
    with log.open("wb") as file:
        service = subprocess.Popen(
            [
                *(COMMAND, "serve", "--create", "--port", "0", "--receivers", "2"),
                *("--bind", "127.0.0.1", "--settle-seconds", "0.1"),
                *("--on-instance", f"touch {told}", str(root)),
            ],
            cwd=folder,
            stderr=file,
        )
    try:
        port = int(eventually(lambda: re.search(r" port (\d+) of ", log.read_text()))[1])
        run(folder, "import", "-a", root, rle)
        eventually(told.exists)
        with asking(port, [(1, STUDY_GET, [EVRLE]), (3, MR, [EVRLE])], role(MR, 0, 1)) as peer:
            study = Path(instances_in(root)[0]).parts[1]
            last, came = get(peer, keys("STUDY", StudyInstanceUID=study))
            peer.release()
        assert last.counts == (None, 1, 0, 0), log.read_text()
        assert pydicom.dcmread(native).PixelData in came.popitem()[1]
    finally:
        service.terminate()
        assert service.wait(30) == 0
    assert " ended (" not in log.read_text()

    run(folder, "import", "-a", root, native)
    run(folder, "index", "--once", "-a", root)
    assert '"encoding"' in run(folder, "conflicts", "-a", root)
    run(folder, "sheet", "-a", root, study, tmp_path / "sheet.png")
    run(folder, "reindex", "--full", "-a", root)
    for arguments in (["ls"], ["show", study], ["verify"], ["status"]):
        assert run(folder, *arguments, "-a", root)


def test_processes_are_started_in_one_way() -> None:
    """Whoever starts Python asks ``python_command``, and no other means of starting is used."""
    for _, path in modules():
        names = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        if path.name != "child_process.py":
            assert "sys.executable" not in names, path
        assert not {name for name in names if re.match(r"multiprocessing\.|os\.(exec|spawn)", name)}
