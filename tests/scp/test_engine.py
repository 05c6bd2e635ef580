"""pynetdicom, driven: what is touched of it below its API, and who does without it."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest
from pynetdicom import fsm
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import AssociationSocket

from plainpacs.scp.network.engine import TOUCHED, VERSIONS

CLASSES = {
    one.__name__: one
    for one in (
        *(DULServiceProvider, DIMSEServiceProvider, AssociationSocket, Association, StateMachine),
    )
}
NAMES = [(owner, name) for owner, names in TOUCHED.items() for name in names]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_version_is_one_that_was_looked_at() -> None:
    first, below = map(numbers, VERSIONS)
    assert first <= numbers(version("pynetdicom")) < below


@pytest.mark.parametrize(("owner", "name"), NAMES, ids=[".".join(one) for one in NAMES])
def test_what_is_touched_is_there(owner: str, name: str) -> None:
    """A method of the class, or what its ``__init__`` sets."""
    one = CLASSES[owner]
    assert hasattr(one, name) or f"self.{name}" in inspect.getsource(one), f"{owner}.{name} is gone"


STATES = "73f9"


def test_the_state_machine_is_the_one_of_the_standard_that_was_looked_at() -> None:
    """``Provider.settle`` and ``Requestor`` name states and events of PS3.8 Table 9-10."""
    table = repr(sorted(fsm.TRANSITION_TABLE.items())).encode()
    assert hashlib.sha256(table).hexdigest()[:4] == STATES, "fsm.TRANSITION_TABLE changed"


COMMANDS = ["plainpacs.archive.app.cli", "plainpacs.indexer.commands.ls", "plainpacs.scp.commands"]


@pytest.mark.parametrize("module", COMMANDS)
def test_who_needs_no_network_loads_no_pynetdicom(module: str) -> None:
    words = f"import sys, {module}\nprint('pynetdicom' in sys.modules or 'pydicom' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", words], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
