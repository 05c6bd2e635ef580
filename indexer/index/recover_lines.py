"""Making the manifest line again of an instance that has none: ``recovered`` from its file.

A receiver links the file first and appends the line a moment later. So a file without a line is
healed only when its temporary link is gone, or when it has been there for so long that whoever
linked it is not coming back (a user's own hard links keep the count up for ever).
"""

from __future__ import annotations

import logging
import time

from plainpacs.archive.errors import RefusedInstance, UnreadableDataSet
from plainpacs.archive.store.manifest import (
    ORIGIN_RECOVERED,
    Line,
    Provenance,
    best_line,
    line_of,
    lines_in,
    said_by,
)
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.reread_facts import read_attributes, read_facts
from plainpacs.archive.store.temporary import PATIENCE
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import study_files
from plainpacs.archive.tree.publisher import Publisher
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.index.manifest_facts import InstanceFile

log = logging.getLogger(__name__)


class LineRecovery:
    """Appends ``recovered`` lines to the manifests of ``node``."""

    def __init__(self, root: int, node: str, *, digest: str = "blake3") -> None:
        self._root = root
        self._node = node
        self._digest = digest
        self._manifests = ManifestWriter(Publisher(root))
        self._hopeless: dict[InstanceKey, InstanceFile] = {}

    def may_recover(self, file: InstanceFile, now: int) -> bool:
        """``now``: the file system's own clock, in nanoseconds."""
        return file.links == 1 or now - file.ctime > PATIENCE * 1_000_000_000

    def recover(self, key: InstanceKey, file: InstanceFile) -> bool:
        """Appends the line of the instance that lies at ``key``; False when it cannot be read or
        does not belong there, which is said once. Raises OSError."""
        if self._hopeless.get(key) == file:
            return False
        path = layout.instance_path(key)
        try:
            line = self._line_of(key, path)
        except RefusedInstance as error:
            if len(self._hopeless) > 100_000:
                self._hopeless.clear()
            self._hopeless[key] = file
            log.warning("%s is not indexed: %s; move it away or replace it", path, error)
            return False
        folder = layout.study_folder(key.month, key.study)
        self._manifests.append(f"{folder}/{layout.manifest_name(key.series, self._node)}", line)
        log.info("%s had no manifest line; made again", path)
        return True

    def reread(self, path: str, month: str, study: str) -> int:
        """Reads the attributes of the study's instances again, and appends the lines of those of
        which the last line says something else, with who sent them and when; how many those are.
        Raises OSError."""
        folder = layout.study_folder(month, study)
        files = study_files(path, month, study)
        count = 0
        for series, present in files.instances.items():
            lines: dict[str, list[Line]] = {}
            for name in files.manifests.get(series, ()):
                with open(f"{path}/{folder}/{name}", "rb") as manifest:
                    for line, _ in lines_in(manifest.read()):
                        lines.setdefault(line["file"], []).append(line)
            for name, file in present.items():
                best = best_line(lines.get(name, ()), file.size, file.mtime)
                said = said_by(best, name) if best else None
                if said is None:
                    continue
                try:
                    with open(
                        durable.open_file(f"{folder}/{series}/{name}", folder=self._root),
                        "rb",
                        buffering=0,
                    ) as opened:
                        attributes = read_attributes(opened)
                except RefusedInstance as error:
                    log.warning("%s/%s/%s cannot be read again: %s", folder, series, name, error)
                    continue
                if attributes != said[2]:
                    new = line_of(said[0], said[1], attributes, stamp(time.time_ns()))
                    manifest_name = layout.manifest_name(series, self._node)
                    self._manifests.append(f"{folder}/{manifest_name}", new)
                    count += 1
        return count

    def flush(self) -> None:
        self._manifests.flush()

    def close(self) -> None:
        self._manifests.close()

    def _line_of(self, key: InstanceKey, path: str) -> bytes:
        fd = durable.open_file(path, folder=self._root)
        with open(fd, "rb", buffering=0) as file:
            facts, attributes = read_facts(file, layout.instance_name(key.instance), self._digest)
        lies = InstanceKey.of_attributes(attributes)
        if (lies.study, lies.series, lies.instance) != (key.study, key.series, key.instance):
            raise UnreadableDataSet("its UIDs are not those of its place")
        return line_of(facts, Provenance(origin=ORIGIN_RECOVERED), attributes)
