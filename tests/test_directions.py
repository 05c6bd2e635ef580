"""The rooms: who may import whom. (Who may change files: ``test_no_writes_around``.)"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("archive", "indexer", "scp")
ALLOWED = {
    "archive": {"archive"},
    "indexer": {"archive", "indexer"},
    "scp": {"archive", "indexer", "scp"},
}
ONLY_IN = {"pynetdicom": "scp", "watchdog": "indexer"}


def folder_of(room: str) -> Path:
    package = importlib.import_module(f"plainpacs.{room}")
    assert package.__file__
    return Path(package.__file__).parent


def modules() -> Iterator[tuple[str, Path]]:
    for room in ROOMS:
        found = sorted(folder_of(room).glob("*.py"))
        assert found
        for path in found:
            yield room, path


every_module = pytest.mark.parametrize(
    ("room", "path"), list(modules()), ids=lambda value: getattr(value, "stem", value)
)


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
        if parts[0] == "plainpacs" and len(parts) > 1:
            assert parts[1] in ALLOWED[room], f"{path.name} imports {name}"
        if parts[0] in ONLY_IN:
            assert room == ONLY_IN[parts[0]], f"{path.name} imports {name}"
