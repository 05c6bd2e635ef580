"""Nothing writes around the durability module: every change to the tree is one of its primitives.

Seen from inside: an audit hook (``sys.addaudithook``) watches a process that makes an archive,
stores, imports, indexes, removes, restores, erases, decides and mends. Every event that changes
something below ROOT must have been raised by a function of ``archive/tree/durable.py``. CPython
raises no event for mknod, writev, utime's fd, fsync, copy_file_range: so, seen from outside too, no
other module may so much as name a function that changes files (``test_no_module_names_...``).
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.support.archives import part10

ROOMS = ("archive", "indexer", "scp")
CHANGES = {
    *("fsync", "fdatasync", "sync", "link", "symlink", "rename", "renames", "replace", "unlink"),
    *("remove", "removedirs", "rmdir", "rmtree", "mkdir", "makedirs", "mknod", "mkfifo", "move"),
    *("truncate", "ftruncate", "posix_fallocate", "write", "writev", "pwrite", "pwritev", "utime"),
    *("sendfile", "copy_file_range", "splice", "chmod", "fchmod", "lchmod", "chown", "fchown"),
    *("lchown", "setxattr", "removexattr", "copy", "copy2", "copyfile", "copyfileobj", "copytree"),
    *("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC", "O_TMPFILE", "ACCESS_WRITE"),
    *("write_bytes", "write_text", "touch", "hardlink_to", "symlink_to", "mkstemp", "mkdtemp"),
}
MODULES = ("os", "shutil", "mmap", "tempfile", "posix", "pathlib")
ELSEWHERE = {
    ("indexer/api.py", "Path"): "what callers get (test_api.py: it never writes)",
    ("indexer/output/formats.py", "O_WRONLY"): "/dev/null in place of a closed pipe",
    ("indexer/query/parallel.py", "write"): "a pipe to a process of ours",
    ("indexer/commands/verify.py", "open"): "the file of --resume, which the user names",
    ("scp/storage/send_log.py", "open"): "the file of --resume, which the user names",
    ("scp/receiver/admission.py", "write"): "anonymous memory that receiver processes share",
    ("scp/daemon/child.py", "write"): "a pipe to a process of ours",
}
"""Uses that change no file of an archive, by module and name, and what they are."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        package = importlib.import_module(f"plainpacs.{room}")
        assert package.__file__
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            yield (
                f"{room}/{path.relative_to(Path(package.__file__).parent)}",
                ast.parse(path.read_text()),
            )


def named(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The functions and flags that change files which a module names, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in MODULES and node.attr in CHANGES:
                yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                if alias.name in (*CHANGES, "Path", "open", "*"):
                    yield alias.name, node.lineno
        elif _opens(node):
            yield "open", node.lineno


def _opens(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether it is a call of ``open`` that is not clearly for reading."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
    return node.func.id == "open" and not all(
        isinstance(mode, ast.Constant) and mode.value in ("r", "rb") for mode in modes
    )


def test_no_module_names_what_changes_files() -> None:
    found = {}
    for module, tree in sources():
        if module != "archive/tree/durable.py":
            for name, line in named(tree):
                found[module, name] = line
    wrong = {place: line for place, line in found.items() if place not in ELSEWHERE}
    assert not wrong, "only archive/tree/durable.py changes files"
    assert found.keys() == ELSEWHERE.keys(), "an exception is not needed any more"


def test_the_check_sees_what_it_should() -> None:
    for text in (
        "os.rename(a, b)",
        "from os import unlink",
        "open(path, 'w')",
        "open(path, mode=how)",
        "os.open(path, os.O_RDONLY | os.O_CREAT)",
        "mmap.mmap(fd, 0, access=mmap.ACCESS_WRITE)",
        "from pathlib import Path",
    ):
        assert list(named(ast.parse(text))), text
    assert not list(named(ast.parse("open(path, 'rb'); open(fd); os.open(path, os.O_RDONLY)")))


# --- from inside ---------------------------------------------------------------------------------

WATCHED = r'''
import fcntl, json, os, sys

root, others = sys.argv[1:]
DURABLE = ("tree", "durable.py")
OPENING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The arguments of an event: where its paths are, and the directory descriptors they belong to.
PATHS = {
    "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.truncate": ((0, -1),),
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.utime": ((0, 3),), "os.setxattr": ((0, -1),),
    "os.removexattr": ((0, -1),), "shutil.move": ((1, -1),), "shutil.rmtree": ((0, 1),),
    "shutil.copyfile": ((1, -1),), "shutil.copytree": ((1, -1),),
}
seen, wrong = {}, []
quiet = False


def place(path, folder=-1):
    """The full path, as the system has it."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    above = os.getcwd() if folder in (-1, None) else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(above, os.fsdecode(path)))


def by_whom():
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith("<"):
        frame = frame.f_back
    return frame


def inside(path):
    return path == root or path.startswith(root + "/")


def watch(event, arguments):
    global quiet
    if quiet or not event.startswith(("open", "os.", "shutil.", "mmap.")):
        return
    quiet = True
    try:
        if event == "open":
            path, mode, flags = arguments
            # os.open resolves against a directory that the event does not name.
            changes = bool((flags or 0) & OPENING)
            frame = by_whom()
            folder = frame.f_locals.get("folder", -1) if isinstance(path, str) else -1
            places = [place(path, folder)] if changes else []
        elif event == "mmap.__new__":
            fd, length, access, offset = arguments
            places = [place(fd)] if fd >= 0 and access not in (1, 3) else []
        else:
            places = [
                place(arguments[path], arguments[folder] if folder >= 0 else -1)
                for path, folder in PATHS.get(event, ())
            ]
        if places:
            frame = by_whom()
            file = frame.f_code.co_filename
            ours = tuple(file.split("/")[-2:]) == DURABLE
            touches = any(inside(one) for one in places)
            unsure = event == "open" and not ours and not any(map(os.path.isabs, map(str, places)))
            if touches or unsure:
                seen[event] = seen.get(event, 0) + 1
                if not ours:
                    wrong.append(f"{event} {places} by {file}:{frame.f_lineno}")
    finally:
        quiet = False


sys.addaudithook(watch)

from click.testing import CliRunner
from plainpacs.archive.app import cli
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, read_part10

def run(*arguments, codes=(0,)):
    result = CliRunner().invoke(cli.root, ["-a", root, *arguments])
    assert result.exit_code in codes, (arguments, result.output)

run("init", root)
run("import", others + "/1", others + "/2")
run("reindex")
bodies = {}
for name in os.listdir(others):
    with open(f"{others}/{name}", "rb") as file:
        whole = file.read()
    bodies[name] = whole[read_part10(whole).dataset_offset:]
caller = Provenance("CT1", "DRDCM", "10.0.0.5")
for how in ("keep", "replace"):
    with Archive.open(root, on_conflict=how) as archive:
        archive.store(bodies["1"], EXPLICIT_LITTLE_ENDIAN, caller)
        archive.store(bodies["3"], EXPLICIT_LITTLE_ENDIAN, caller)
        with archive.spool(EXPLICIT_LITTLE_ENDIAN, caller, sop_class="1.2.840.10008.5.1.4.1.1.2",
                           sop_instance="1.2.3.4.8") as spool:
            spool.write(bodies["4"])
            spool.store()
        archive.write_service_note(b"{}")
run("conflicts", "--keep", "second", "1.2.3", codes=(0, 1))
run("rm", "--yes", "1.2.3.4.5")
run("restore", "1.2.3.4.5")
run("rm", "--purge", "--yes", "1.2.3.4.6")
run("verify", codes=(0, 1))
run("repair", "--apply", codes=(0, 1))
run("reindex", "--full")
run("ls")
found = list(wrong)
open(root + "/x", "w").close()
os.rename(root + "/x", root + "/y")
os.chdir(root)
os.remove("y")
print(json.dumps({"seen": seen, "wrong": found, "caught": wrong[len(found):]}))
'''


@pytest.mark.timeout(120)
def test_every_change_is_made_by_the_durability_module(tmp_path: Path) -> None:
    root, others = tmp_path / "archive", tmp_path / "others"
    others.mkdir()
    (others / "1").write_bytes(part10())
    (others / "2").write_bytes(part10(SOPInstanceUID="1.2.3.4.6"))
    (others / "3").write_bytes(part10(PatientName="Other^One"))
    (others / "4").write_bytes(part10(SOPInstanceUID="1.2.3.4.8"))
    run = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, str(root), str(others)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert len(found["caught"]) == 3, "what went around is seen"
    print(found["seen"])
    for event in ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"):
        assert found["seen"][event] >= 2, f"the hook saw too little: {found['seen']}"
