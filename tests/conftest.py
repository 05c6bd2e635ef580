"""Fixtures that several test modules use."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.archives import folders_of_real_files
from tests.support.receiver import start
from tests.support.serve import serve
from tests.support.steps import memory

__all__ = ["memory", "serve", "start"]

QUICK = {
    "archive": "archive attributes charset identity layout manifest settings",
    "indexer": "catalogue cfind_matching output query records stats",
    "scp": "find identifiers negotiation nodes receiver remote_terms responses requestor",
    "project": "directions examples",
    "crash": "no_writes_around",
}
"""The modules of ``-m quick``: something of every room, in less than a minute on two cores."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a script's background ignores it, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command that is run within the tests' process sets up how it logs, for good."""
    root, ours = logging.getLogger(), logging.getLogger("plainpacs")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def real_folders() -> tuple[Path, ...]:
    """Folders of real DICOM files: that of PLAINPACS_TEST_DATA where it exists, and pydicom's."""
    return folders_of_real_files()


@pytest.fixture(scope="session")
def shared_data(real_folders: tuple[Path, ...]) -> Path:
    """The folder that PLAINPACS_TEST_DATA names. Without it the test is skipped."""
    if len(real_folders) < 2:
        pytest.skip("needs a folder of real DICOM files: set PLAINPACS_TEST_DATA")
    return real_folders[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that read the folder of PLAINPACS_TEST_DATA, and those of ``-m quick``."""
    for item in items:
        if "real_folders" in getattr(item, "fixturenames", ()):
            item.add_marker("real_data")
        if item.path.stem.removeprefix("test_") in QUICK.get(item.path.parent.name, "").split():
            item.add_marker("quick")
