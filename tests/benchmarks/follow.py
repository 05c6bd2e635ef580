"""How soon a received study is listed, and what following it costs.

    python -m tests.benchmarks.follow [SECONDS] [INSTANCES]

Sends instances of one study to `plainpacs serve` at an even pace (5,000 in 60 s), then measures the
time from the answer to the last one until `plainpacs ls` shows them all, and the processor time of
the indexer as a share of the receiver's. Asserts nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import orjson
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pynetdicom import AE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import CT_IMAGE_STORAGE, data_set

_TICKS = os.sysconf("SC_CLK_TCK")
_PIXELS = bytes(512 * 512 * 2)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def child_of(pid: int) -> int:
    while True:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                return int(child)
        time.sleep(0.05)


def listed(root: str) -> int:
    command = [sys.executable, "-m", "plainpacs.archive.cli", "ls", "-a", root]
    found = subprocess.run(command, capture_output=True, check=False).stdout
    return int(orjson.loads(found)["NumberOfStudyRelatedInstances"]) if found else 0


def main(seconds: float = 60.0, instances: int = 5000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/archive"
        command = [sys.executable, "-m", "plainpacs.archive.cli", "serve", "--create", root]
        server = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
        assert server.stderr
        port = None
        while port is None:
            match = re.search(r"port (\d+)", server.stderr.readline())
            port = match and int(match[1])
        try:
            measure(server.pid, root, port, seconds, instances)
        finally:
            server.send_signal(signal.SIGTERM)
            sys.stderr.write(server.communicate()[1])


def measure(pid: int, root: str, port: int, seconds: float, instances: int) -> None:
    ae = AE(ae_title="BENCH")
    ae.add_requested_context(CT_IMAGE_STORAGE, "1.2.840.10008.1.2.1")
    association = ae.associate("127.0.0.1", port, ae_title="DRDCM")
    assert association.is_established
    time.sleep(3)  # until the indexer has started too
    receiver, indexer = cpu_seconds(pid), cpu_seconds(child_of(pid))
    began = time.monotonic()
    for number in range(instances):
        time.sleep(max(0.0, began + seconds * number / instances - time.monotonic()))
        raw = data_set(SOPInstanceUID=f"1.2.3.4.5.{number}", PixelData=_PIXELS)
        dataset = read_dataset(BytesIO(raw), False, True)
        dataset.file_meta = meta(number)
        assert association.send_c_store(dataset).Status == 0
    sent = time.monotonic()
    while (there := listed(root)) < instances:
        time.sleep(0.05)
    done = time.monotonic()
    receiver, indexer = cpu_seconds(pid) - receiver, cpu_seconds(child_of(pid)) - indexer
    association.release()
    print(f"{there} instances in {sent - began:.1f} s")
    print(f"listed by `ls` after the last answer:  {done - sent:.2f} s (its own start included)")
    print(f"processor time, receiver:              {receiver:.2f} s")
    print(f"processor time, indexer:               {indexer:.2f} s")
    print(f"indexer / receiver:                    {indexer / receiver:.3f}")


def meta(number: int) -> FileMetaDataset:
    found = FileMetaDataset()
    found.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    found.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    found.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{number}"
    return found


if __name__ == "__main__":
    main(*(float(a) if i == 0 else int(a) for i, a in enumerate(sys.argv[1:3])))
