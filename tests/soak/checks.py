"""Whether the archive keeps its promises. Reads the tree by itself: see archive/FORMAT.md."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.soak.ledger import Instance, Ledger, Study, digest
from tests.soak.service import PLAINPACS

_LINES_OF_TRACEBACK = 25


def data_set_of(content: bytes) -> bytes | None:
    """What comes after the File Meta Information; None when it is not a Part 10 file."""
    if content[128:132] != b"DICM":
        return None
    pos = 132
    while content[pos : pos + 2] == b"\2\0":
        long = content[pos + 4 : pos + 6] in (b"OB", b"UN")
        if len(content) < pos + 12:
            return None
        [length] = struct.unpack_from("<L" if long else "<H", content, pos + (8 if long else 6))
        pos += (12 if long else 8) + length
    return content[pos:]


def fault_of(instance: Instance, content: bytes) -> str:
    """What is wrong with the bytes of its file; nothing when they are what was sent."""
    data = data_set_of(content)
    if data is None:
        return "is no Part 10 file"
    whole = digest(data) == instance.digest if instance.digest else data.endswith(instance.pixels())
    return "" if whole else "has other bytes than were sent"


def check_promises(root: Path, ledger: Ledger, instances: Iterable[Instance]) -> int:
    """That each is there and equal; notes what is not. Returns how many were looked at."""
    count = 0
    for instance in instances:
        count += 1
        try:
            fault = fault_of(instance, (root / instance.path).read_bytes())
        except FileNotFoundError:
            fault = "is missing"
        if fault and instance.study not in ledger.removed:
            ledger.find(f"{instance.path} was answered 0000 and {fault}")
    return count


def check_variants(root: Path, ledger: Ledger, study: Study) -> None:
    for path in study.variants:
        if not (root / path).exists() and study.uid not in ledger.removed:
            ledger.find(f"a variant was answered 0000 and is missing: {path}")


def check_tree(root: Path, ledger: Ledger) -> int:
    """That every ``.dcm`` that was not promised is whole too. Returns how many there are of all."""
    count = 0
    for folder, folders, names in os.walk(root):
        if ".plainpacs" in folders:
            folders.remove(".plainpacs")
        for name in names:
            path = Path(folder, name)
            if path.suffix != ".dcm":
                continue
            count += 1
            study = path.parent.parent.name
            instance = ledger.instance(study, path.stem)
            if instance is not None and instance.promised:
                continue
            if instance is not None:
                if fault := fault_of(instance, path.read_bytes()):
                    ledger.find(f"{instance.path} was not promised, is there, and {fault}")
            elif study not in ledger.removed:
                ledger.find(f"{path.relative_to(root)} was never sent")
    return count


def check_indexes(root: Path, ledger: Ledger) -> int:
    """That the indexes count what the folders hold, and that a full rebuild gives the same bytes.

    Returns the number of studies.
    """
    _run(ledger, "reindex", "-a", str(root))
    there: Counter[str] = Counter(path.parts[-3] for path in root.glob("[0-9u]*/*/*/*.dcm"))
    said = _run(ledger, "ls", "-a", str(root), "--all", "--format", "jsonl", allowed=(0, 1))
    listed = {
        study["StudyInstanceUID"]: study["NumberOfStudyRelatedInstances"]
        for study in map(json.loads, said.splitlines())
    }
    for study in sorted(there.keys() | listed.keys()):
        if there[study] != listed.get(study, 0):
            folder, index = there[study], listed.get(study, 0)
            ledger.find(f"study {study} has {folder} instances in its folder, ls says {index}")
    before = _indexes(root)
    _run(ledger, "reindex", "--full", "-a", str(root))
    after = _indexes(root)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            ledger.find(f"a full rebuild makes another {path}")
    return len(there)


def _indexes(root: Path) -> dict[str, bytes]:
    """The derived files, the catalogue as its lines in any order."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/*/study.json")}
    for path in root.glob("*/studies.jsonl"):
        lines = {line.split(b'"', 4)[3]: line for line in path.read_bytes().splitlines()}
        live = [line for line in lines.values() if b'"removed":true' not in line[-20:]]
        found[str(path.relative_to(root))] = b"\n".join(sorted(live))
    return found


def verify(root: Path, ledger: Ledger) -> str:
    """Runs ``plainpacs verify``, where there is one. Variants kept aside are no fault of its."""
    there = subprocess.run([*PLAINPACS, "verify", "--help"], check=False, capture_output=True)
    if there.returncode:
        return "there is no such command yet"
    said = _run(ledger, "verify", "-a", str(root), "--format", "jsonl", allowed=(0, 1))
    found = [json.loads(line) for line in said.splitlines()]
    for one in found:
        if one["kind"] != "conflict-waiting":
            ledger.find(f"verify: {one['kind']}: {one['path']}: {one['words']}")
    kinds = Counter(one["kind"] for one in found)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "clean"


def check_stopped(root: Path, ledger: Ledger) -> None:
    """That a clean stop left nothing unfinished."""
    internal = root / ".plainpacs"
    for path in [*(internal / "incoming").iterdir(), *internal.glob("dirty.*")]:
        ledger.find(f"left behind after a clean stop: {path.relative_to(root)}")


def check_log(log: Path, ledger: Ledger) -> None:
    """That nothing unforeseen happened, and no patient is named."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        if "a defect of plainpacs" in line:
            ledger.find(
                "in the log: " + "\n    ".join(lines[number : number + _LINES_OF_TRACEBACK])
            )
        elif "SECRET" in line:
            ledger.find(f"in the log: {line[:200]}")


def _run(ledger: Ledger, *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [*PLAINPACS, *arguments], check=False, capture_output=True, text=True, timeout=600
    )
    if done.returncode not in allowed:
        words = done.stderr.strip()[-300:]
        ledger.find(f"plainpacs {arguments[0]} ended with {done.returncode}: {words}")
    return done.stdout
