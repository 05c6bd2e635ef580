"""Files that are de-identified while they are sent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

from plainpacs.archive.buffer import Buffer
from plainpacs.indexer.deidentify.instance import Deidentifier, transfer_syntax_of
from plainpacs.scp.storage.instance_file import File, Outgoing
from plainpacs.scp.storage.store_scu import OpenFile


def described(instance: Outgoing, deidentifier: Deidentifier) -> Outgoing:
    """What ``instance`` becomes; its path is still that of the file as it is."""
    return instance._replace(
        sop_instance=deidentifier.uid(instance.sop_instance),
        transfer_syntax=transfer_syntax_of(instance.transfer_syntax),
        study=deidentifier.uid(instance.study),
        series=deidentifier.uid(instance.series),
    )


def opener(deidentifier: Deidentifier) -> OpenFile:
    """Opens de-identified copies of files; they raise what ``File`` does, and LeftOut."""

    def open_file(path: str, buffer: memoryview) -> File:
        with open(path, "rb") as file:
            whole = file.read()
        return _Copy(deidentifier.deidentified(whole).pieces, buffer)

    return open_file


class _Copy(File):
    """A file for as long as it is open: the decoder is another process, and wants a path."""

    def __init__(self, pieces: Iterable[Buffer], buffer: memoryview) -> None:
        self._temporary = tempfile.NamedTemporaryFile(prefix="plainpacs-")  # noqa: SIM115 - close()
        try:
            self._temporary.writelines(pieces)
            self._temporary.flush()
            super().__init__(self._temporary.name, buffer)
        except BaseException:
            self._temporary.close()
            raise

    def close(self) -> None:
        super().close()
        self._temporary.close()
