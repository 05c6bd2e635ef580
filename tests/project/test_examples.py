"""Every example in a docstring does what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOMS = ("archive", "indexer", "scp")


def modules() -> list[str]:
    """The modules that have examples."""
    found = []
    for room in ROOMS:
        package = importlib.import_module(f"plainpacs.{room}")
        assert package.__file__
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            if ">>> " in path.read_text():
                inner = path.relative_to(Path(package.__file__).parent).with_suffix("")
                found.append(".".join(["plainpacs", room, *inner.parts]))
    return found


@pytest.mark.parametrize("name", modules())
def test_they_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
