"""Stock pynetdicom writing to disk, as its documentation has it: no decoding, no sync.

    python pynetdicom_server.py FOLDER

Prints its port, then serves until it is killed.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time


def store(event: evt.Event, folder: Path) -> int:
    """The handler of a C-STORE: the data set with preamble and File Meta, as it came."""
    path = folder / str(event.request.AffectedSOPInstanceUID)
    path.write_bytes(event.encoded_dataset())
    return 0x0000


def main() -> None:
    ae = AE()
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    handlers = [(evt.EVT_C_STORE, store, [Path(sys.argv[1])])]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    print(server.server_address[1], flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
