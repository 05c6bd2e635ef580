"""What an error says to install can be installed."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from plainpacs.archive.app.extras import how_to_install


class Installed(importlib.metadata.PathDistribution):
    """plainpacs, as pip notes where it came from."""

    def __init__(self, folder: Path, origin: dict[str, object]) -> None:
        super().__init__(folder)
        if origin:
            (folder / "direct_url.json").write_text(json.dumps(origin))


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, "pip install 'plainpacs[web]'"),
        (
            {"url": "file:///srv/my%20clone", "dir_info": {}},
            "pip install '/srv/my clone[web]'",
        ),
        (
            {"url": "file:///tmp/plainpacs-1-py3-none-any.whl", "archive_info": {}},
            "pip install '/tmp/plainpacs-1-py3-none-any.whl[web]'",
        ),
        (
            {"url": "https://git.example.org/p", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'plainpacs[web] @ git+https://git.example.org/p'",
        ),
        (
            {"url": "https://example.org/p.tar.gz", "archive_info": {}},
            "pip install 'plainpacs[web] @ https://example.org/p.tar.gz'",
        ),
    ],
)
def test_from_where_it_was_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: dict[str, object], command: str
) -> None:
    found = Installed(tmp_path, origin)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: found)
    assert how_to_install("web") == command


def test_it_names_every_extra_by_its_name() -> None:
    extras = importlib.metadata.metadata("plainpacs").get_all("Provides-Extra") or []
    assert {"metrics", "pixels", "web"} <= set(extras)
