"""No answer is lost: pynetdicom's own requestor loses one in some thousand, between two threads.

``PLAINPACS_TEST_STORES`` says how many stores there are: 50,000 to be sure, a few in the suite.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node
from plainpacs.scp.storage import instance_file
from plainpacs.scp.storage.store_scu import deliver
from tests.support.archives import part10
from tests.support.receiver import Start

STORES = int(os.environ.get("PLAINPACS_TEST_STORES", "2000"))
LIMITS = Limits(pdu_timeout=20.0, idle_timeout=20.0, announced_pdu=1 << 16)


def test_every_store_of_ours_has_its_answer(start: Start, tmp_path: Path) -> None:
    running = start(sync="off")
    path = tmp_path / "one"
    path.write_bytes(part10())
    one = instance_file.of_file(str(path))
    node = Node("DRDCM", "127.0.0.1", running.port)
    sent = list(deliver(node, "TESTER", [one] * STORES, limits=LIMITS))
    assert len(sent) == STORES
    assert {each.status for each in sent} == {0}
    # And nothing of ours needed a thread of pynetdicom's to get it.
    assert not [thread for thread in threading.enumerate() if "pynetdicom" in repr(type(thread))]
