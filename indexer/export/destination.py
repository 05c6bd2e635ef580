"""Where an export goes: a folder, a file, or standard output. It is whole, or it is not there.

It is written beside, under a name that says it is unfinished, made durable, and renamed. Whoever
pulls the plug, or the stick, finds all of it or a leftover that starts with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import BadSettings, PlainpacsError, StorageUnavailable
from plainpacs.archive.tree import durable
from plainpacs.indexer.export.dicomdir import NAME as DICOMDIR
from plainpacs.indexer.export.source import Source

_UNSYNCED = 128  # files written and not yet synced
_SYNCING = 16


class OutputFile:
    """A file that is not finished. Raises BadSettings when it may not be made, else OSError.

    A context manager: without ``finish`` nothing stays.
    """

    def __init__(self, path: str, *, force: bool) -> None:
        self._above, self._name = _place(path)
        self._unfinished = _unfinished_name(self._name)
        try:
            there = _kind_there(self._name, self._above)
            if there == "folder":
                raise BadSettings(f"{path} is a folder; name a file to be made")
            if there == "device":
                raise BadSettings(f"{path} is no file; to write into a device or pipe: - > {path}")
            if there and not force:
                raise BadSettings(f"{path} is there already; name another, or add --force")
            self._fd = durable.create(self._unfinished, folder=self._above)
        except BaseException:
            os.close(self._above)
            raise

    def write(self, data: Buffer) -> int:
        return durable.write_all(self._fd, [data])

    def flush(self) -> None:
        """Nothing is held back; whoever writes to files asks for this."""

    def finish(self) -> None:
        durable.sync_file(self._fd)
        durable.rename(self._unfinished, self._name, folder=self._above, to_folder=self._above)
        _sync_folder(self._above)

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(self._unfinished, folder=self._above)
        os.close(self._above)


class StandardOutput:
    """As ``OutputFile``, to whoever reads standard output."""

    def __init__(self) -> None:
        if os.isatty(1):
            raise BadSettings("standard output is a terminal; send it to a file or a program")

    def write(self, data: Buffer) -> int:
        try:
            return durable.write_all(1, [data])
        except BrokenPipeError:
            raise PlainpacsError("the reader of standard output has gone away") from None

    def flush(self) -> None:
        """As ``OutputFile.flush``."""

    def finish(self) -> None:
        """There is nothing to be done: it has gone already."""

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class OutputFolder:
    """A folder that is not finished. Raises BadSettings when it may not be made, else OSError.

    A context manager: without ``finish`` nothing stays. ``force``: takes the place of an earlier
    export, which is one with a DICOMDIR; of nothing else.
    """

    def __init__(self, path: str, *, force: bool) -> None:
        self._above, self._name = _place(path)
        self._unfinished = _unfinished_name(self._name)
        self._written: list[int] = []
        self._syncing = ThreadPoolExecutor(_SYNCING, thread_name_prefix="export")
        self._folder = -1
        self._path: tuple[str, ...] = ()
        try:
            _may_take(path, self._name, self._above, force=force)
            durable.make_folder(self._unfinished, folder=self._above)
            self._top = durable.open_folder(self._unfinished, folder=self._above)
        except BaseException:
            os.close(self._above)
            raise

    def add(self, path: tuple[str, ...], source: Source) -> None:
        """A copy of the whole of ``source``; its file system shares the blocks where it can."""
        fd = self._create(path)
        source.copy_to(fd)
        with contextlib.suppress(PermissionError):  # some network file systems
            durable.set_time(fd, source.mtime)

    def add_pieces(self, path: tuple[str, ...], pieces: Iterable[Buffer]) -> None:
        durable.write_all(self._create(path), pieces)

    def _create(self, path: tuple[str, ...]) -> int:
        if len(self._written) >= _UNSYNCED:
            self._sync()
        if self._folder < 0 or path[:-1] != self._path:
            self._leave_folder()
            self._folder, self._path = self._open(path[:-1]), path[:-1]
        fd = durable.create(path[-1], folder=self._folder)
        self._written.append(fd)
        return fd

    def _open(self, path: tuple[str, ...]) -> int:
        folder = os.dup(self._top)
        for name in path:
            try:
                with contextlib.suppress(FileExistsError):
                    durable.make_folder(name, folder=folder)
                    _sync_folder(folder)
                below = durable.open_folder(name, folder=folder)
            finally:
                os.close(folder)
            folder = below
        return folder

    def _sync(self) -> None:
        # Side by side they share the commits of the file system's journal.
        for _ in self._syncing.map(durable.sync_file, self._written):
            pass
        self._close_written()

    def _close_written(self) -> None:
        written, self._written = self._written, []
        for fd in written:
            os.close(fd)

    def _leave_folder(self) -> None:
        if self._folder >= 0:
            self._sync()
            _sync_folder(self._folder)
            os.close(self._folder)
            self._folder = -1

    def finish(self) -> None:
        self._leave_folder()
        _sync_folder(self._top)
        above = {"folder": self._above, "to_folder": self._above}
        old = f"{self._unfinished}.old"
        try:
            durable.rename(self._unfinished, self._name, **above)  # an empty folder gives way
        except OSError:
            durable.rename(self._name, old, **above)
            durable.rename(self._unfinished, self._name, **above)
        _sync_folder(self._above)
        _remove_tree(old, self._above)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._syncing.shutdown(cancel_futures=True)
        self._close_written()
        if self._folder >= 0:
            os.close(self._folder)
        os.close(self._top)
        with contextlib.suppress(OSError):
            _remove_tree(self._unfinished, self._above)
        os.close(self._above)


def _sync_folder(fd: int) -> None:
    """As far as the file system can: those of sticks and network drives cannot always."""
    try:
        durable.sync_folder(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise


# --- what is there already ----------------------------------------------------------------------


def _place(path: str) -> tuple[int, str]:
    """(the folder it is to lie in, open; its name). A symbolic link is followed."""
    above, name = os.path.split(os.path.realpath(path))
    if not name:
        raise BadSettings(f"{path} cannot be made: it is the root of the file system")
    try:
        return os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name
    except FileNotFoundError:
        raise BadSettings(f"{path} cannot be made: make its folder first") from None


def _unfinished_name(name: str) -> str:
    return f".{name[:100]}.{os.urandom(4).hex()}.unfinished"


def _kind_there(name: str, above: int) -> str:
    try:
        facts = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(facts.st_mode):
        return "folder"
    return "file" if stat.S_ISREG(facts.st_mode) else "device"


def _may_take(path: str, name: str, above: int, *, force: bool) -> None:
    there = _kind_there(name, above)
    if there in ("file", "device"):
        raise BadSettings(f"{path} is no folder; name a folder to be made, or add --zip")
    if not there:
        return
    folder = durable.open_folder(name, folder=above)
    try:
        names = os.listdir(folder)
    finally:
        os.close(folder)
    if names and not force:
        raise BadSettings(f"{path} is not empty; name another, or add --force to replace an export")
    if names and DICOMDIR not in names:
        raise BadSettings(
            f"{path} is not empty, and no export, as there is no {DICOMDIR} in it: it is left alone"
        )


def _remove_tree(name: str, above: int) -> None:
    """Deletes a folder and everything in it, if it is there. No link is followed."""
    try:
        folder = durable.open_folder(name, folder=above)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(folder):
            if _kind_there(entry, folder) == "folder":
                _remove_tree(entry, folder)
            else:
                durable.unlink(entry, folder=folder)
    finally:
        os.close(folder)
    durable.remove_folder(name, folder=above)


def as_unavailable(out: str, error: OSError) -> StorageUnavailable:
    """What to say when ``out`` cannot be written."""
    where = "standard output" if out == "-" else out
    return StorageUnavailable(f"cannot write {where}: {error.strerror or error}")
