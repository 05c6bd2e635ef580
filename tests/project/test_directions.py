"""The rooms: who may import whom. (Who may change files: ``test_no_writes_around``.)

A room is a package inside ``archive``, ``indexer`` or ``scp``. A room imports only rooms that stand
above it in one table: inside functions and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = (
    "archive/buffer archive/child_process archive/errors",
    "archive/tree archive/dicom",
    "archive/store",
    "archive/app archive/removal",
    "archive/commands archive/conflicts archive/verify",
    "indexer/index indexer/deidentify",
    "indexer/query indexer/export",
    "indexer/output indexer/api",
    "indexer/hooks indexer/links indexer/images",
    "indexer/service",
    "indexer/commands",
    "scp/network",
    "scp/storage",
    "scp/remote scp/receiver",
    "scp/query_retrieve scp/commitment",
    "scp/web",
    "scp/daemon",
    "scp/commands",
)
"""The rooms from the ground up. A room may import itself and those of the floors below."""

HALLS = ("archive", "indexer", "scp")
ONLY_IN = {"pynetdicom": "scp", "watchdog": "indexer/service", "starlette": "scp/web"}
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def folder_of(hall: str) -> Path:
    package = importlib.import_module(f"plainpacs.{hall}")
    assert package.__file__
    return Path(package.__file__).parent


def modules() -> Iterator[tuple[str, Path]]:
    """Every module, by its room."""
    for hall in HALLS:
        top = folder_of(hall)
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if parts != ("__init__",):
                yield f"{hall}/{parts[0]}", path


every_module = pytest.mark.parametrize(
    ("room", "path"), list(modules()), ids=lambda value: getattr(value, "stem", value)
)


def test_all_of_them_are_seen() -> None:
    there = [
        name
        for hall in HALLS
        for _, _, names in os.walk(folder_of(hall))
        for name in names
        if name.endswith(".py")
    ]
    assert len(list(modules())) == len(there) - len(HALLS)
    assert {room for room, _ in modules()} == set(FLOOR), "each room has its floor"


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@every_module
def test_imports_go_one_way(room: str, path: Path) -> None:
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "plainpacs" and len(parts) > 2:
            other = f"{parts[1]}/{parts[2]}"
            assert other in FLOOR, f"{path.name} imports {name}"
            assert other == room or FLOOR[other] < FLOOR[room], f"{path.name} imports {name}"
        if parts[0] in ONLY_IN:
            assert room.startswith(ONLY_IN[parts[0]]), f"{path.name} imports {name}"


def test_within_a_room_there_is_no_circle() -> None:
    """Of the imports that run when a module is loaded, and of those for type checkers."""
    needs: dict[str, set[str]] = {}
    for hall in HALLS:
        top = folder_of(hall)
        for path in sorted(top.rglob("*.py")):
            module = ".".join(["plainpacs", hall, *path.relative_to(top).with_suffix("").parts])
            tree = ast.parse(path.read_text())
            late = {
                node
                for outer in ast.walk(tree)
                if isinstance(outer, ast.FunctionDef)
                for node in ast.walk(outer)
            }
            early = ast.Module([node for node in ast.walk(tree) if node not in late], [])
            needs[module] = {
                name
                for node in early.body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in imported(node)
            }
    needs = {module: names & needs.keys() for module, names in needs.items()}
    assert len(needs) > 150
    while free := [module for module, names in needs.items() if not names]:
        needs = {module: names - set(free) for module, names in needs.items() if module not in free}
    assert not needs, "these import each other"
