"""A tree of relative symbolic links into an archive: what was made in it, and changing that.

    DIR/.plainpacs-links/tree.json      whose links they are, and how they are arranged
                         studies.jsonl  which folder each study has: the last line for one counts
                         lock
    DIR/<top>/<study>/<series>/<n>.dcm  the links

Only what we made is taken away: symbolic links with a name that we give, in a folder that
``studies.jsonl`` has for a study, to an instance of that study; and folders that are empty then. A
study is put down before its first link is made, so that whatever is killed, its links are known.
A study that is new appears at once, by a rename; one that changes gains links before it loses any.

To build a whole tree beside the old one and rename it would be less code, but what people put into
it would be lost, and 10,000 links take 1.6 s to make, 0.03 s to find unchanged: a timer calls us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import locked
from plainpacs.indexer.links.names import DEPTH, By, is_link_name
from plainpacs.indexer.links.state import (
    LOCK,
    OWN,
    STUDIES,
    Facts,
    Linked,
    begin,
    facts_of,
    line_of,
    new_name,
    read_studies,
    refuse_another,
    refuse_place,
    replace,
)

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Wanted = Mapping[str, Mapping[str, str]]
"""The instance (its path in the archive) of each link, by series' folder and link's name."""


class LinkTree:
    """An open tree, of one process alone. Made by ``LinkTree.open``, a context manager.

    ``studies``: what has links, by StudyInstanceUID. Methods raise OSError.
    """

    def __init__(self, path: str, folder: int, facts: Facts) -> None:
        self.path = path
        self.studies = read_studies(folder)
        self.in_the_way: list[str] = []
        """Paths where something else lies that was left alone."""
        self._folder = folder
        self._facts = facts

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str, root: str, *, make: By | None = None) -> Iterator[LinkTree]:
        """The tree at ``path`` of the archive at ``root``; waits until nobody else has it open.

        ``make``: makes it one, arranged so, when it is not there or an empty folder. Raises
        NotALinkTree, OSError.
        """
        refuse_place(path)
        if make is not None and not os.path.isdir(path):
            durable.make_path(path)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            begin(path, folder, make)
            with locked(folder, LOCK):
                way = os.path.relpath(os.path.realpath(root), os.path.realpath(path))
                facts = facts_of(path, folder)
                if facts is None:
                    # Killed before it was written; or nothing was ever made here.
                    facts = Facts(make or By.PATIENT, way)
                    facts.write(folder)
                if facts.archive != way:
                    facts = Facts(facts.by, way, sorted({facts.archive, *facts.before} - {way}))
                    refuse_another(path, root, facts)
                    facts.write(folder)
                _sweep(folder)
                yield cls(path, folder, facts)
        finally:
            os.close(folder)

    @property
    def by(self) -> By:
        return self._facts.by

    @property
    def way(self) -> str:
        """From the tree to the archive."""
        return self._facts.archive

    def has(self, study: str) -> bool:
        """Whether the study's folder is there."""
        return os.path.lexists(os.path.join(self.path, self.studies[study].folder))

    def expect(self, folders: Mapping[str, str]) -> None:
        """Puts down, durably, in which folder links of each study are going to be made."""
        self.studies.update((study, Linked(folder)) for study, folder in folders.items())
        if folders:
            self._put_down(folders)
            durable.settle(self._folder, STUDIES)

    def made(self, facts: Mapping[str, str]) -> None:
        """Puts down that these studies have all their links."""
        for study, fact in facts.items():
            self.studies[study] = Linked(self.studies[study].folder, fact)
        self._put_down(facts)

    def _put_down(self, studies: Iterable[str]) -> None:
        lines = b"".join(line_of(study, self.studies[study]) for study in studies)
        if lines:
            durable.append_lines(self._folder, STUDIES, lines)

    def save(self) -> None:
        """Leaves one line for each study that has links, and none of others."""
        lines = b"".join(line_of(study, self.studies[study]) for study in sorted(self.studies))
        replace(self._folder, STUDIES, lines)

    def complete(self, by: By) -> None:
        """Puts down that all links there are lead the right way, and are arranged ``by``."""
        if self._facts.before or by is not self._facts.by:
            self._facts = Facts(by, self._facts.archive)
            self._facts.write(self._folder)

    # --- links ----------------------------------------------------------------------------------

    def link(self, study: str, wanted: Wanted) -> bool:
        """Leaves the study with these links, in the folder that is put down for it; whether that
        changed anything."""
        folder = self.studies[study].folder
        with self._opened(folder) as there:
            if there is not None:
                return self._change(there, study, wanted)
        self._make(folder, wanted)
        return True

    def clear(self, study: str) -> bool:
        """Takes all links of the study away; it is no longer among ``studies``. Whether its folder
        is gone, too, and the one above it unless other studies are there."""
        linked = self.studies.pop(study)
        with self._opened(linked.folder) as there:
            if there is not None:
                self._change(there, study, {})
        top, _, name = linked.folder.partition("/")
        with self._opened(top) as above:
            if above is not None:
                _remove_if_empty(name, above)
        _remove_if_empty(top, self._folder)
        there_still = linked.folder if self._shared(top) else top
        return not os.path.lexists(os.path.join(self.path, there_still))

    def _shared(self, top: str) -> bool:
        return any(linked.folder.startswith(top + "/") for linked in self.studies.values())

    def remove(self) -> bool:
        """Takes every link away, and all that is ours; whether the folder is empty then."""
        for study in list(self.studies):
            self.clear(study)
        with self._opened(OWN) as own:
            assert own is not None
            for name in os.listdir(own):
                durable.unlink(name, folder=own)
        durable.remove_folder(OWN, folder=self._folder)
        return not os.listdir(self._folder)

    def _change(self, folder: int, study: str, wanted: Wanted) -> bool:
        """Makes what is lacking, then takes away what is not wanted, in an open study's folder."""
        changed = False
        before = {name: self._ours(folder, name, study) for name in _folders(folder)}
        for series, links in wanted.items():
            known = before.get(series, {})
            missing = {name: to for name, to in links.items() if known.get(name) != self._to(to)}
            if missing:
                changed = True
                blocked = self._add(folder, series, missing, known)
                self.in_the_way += [f"{self.studies[study].folder}/{path}" for path in blocked]
        for series, known in before.items():
            surplus = known.keys() - wanted.get(series, {}).keys()
            if surplus:
                changed = True
                with _open(series, folder) as below:
                    for name in surplus:
                        durable.unlink(name, folder=below)
            if known and not wanted.get(series):
                _remove_if_empty(series, folder)
        return changed

    def _add(
        self, folder: int, series: str, missing: Mapping[str, str], known: Mapping[str, str]
    ) -> list[str]:
        """Makes links in a series' folder; returns the paths where something else lies."""
        with contextlib.suppress(FileExistsError):
            durable.make_folder(series, folder=folder)
        blocked = []
        try:
            with _open(series, folder) as below:
                for name, path in missing.items():
                    try:
                        if name in known:  # ours, to something else: at no time is there none
                            self._put_in_place(name, path, below)
                        else:
                            durable.symlink(self._to(path), name, folder=below)
                    except FileExistsError:
                        blocked.append(f"{series}/{name}")
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            blocked.append(series)
        return blocked

    def _put_in_place(self, name: str, path: str, folder: int) -> None:
        temporary = new_name()
        durable.symlink(self._to(path), temporary, folder=self._folder)
        durable.rename(temporary, name, folder=self._folder, to_folder=folder)

    def _make(self, folder: str, wanted: Wanted) -> None:
        """A study's folder, whole at once."""
        top, _, name = folder.partition("/")
        aside = new_name()
        durable.make_folder(aside, folder=self._folder)
        with _open(aside, self._folder) as made:
            self._change(made, "", wanted)
        with contextlib.suppress(FileExistsError):
            durable.make_folder(top, folder=self._folder)
        try:
            with _open(top, self._folder) as above:
                durable.rename(aside, name, folder=self._folder, to_folder=above)
        except OSError as error:
            if error.errno not in (*_ABSENT, errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.in_the_way.append(folder)
            _sweep(self._folder)

    def _to(self, path: str) -> str:
        """What a link to the instance at ``path`` says."""
        return f"{'../' * DEPTH}{self._facts.archive}/{path}"

    def _ours(self, folder: int, series: str, study: str) -> dict[str, str]:
        """The links in a series' folder that we made, and where they lead."""
        found = {}
        with _open(series, folder) as below:
            for name in filter(is_link_name, os.listdir(below)):
                try:
                    to = os.readlink(name, dir_fd=below)
                except OSError:
                    continue  # no link
                if self._leads_to(to, study):
                    found[name] = to
        return found

    def _leads_to(self, to: str, study: str) -> bool:
        for way in (self._facts.archive, *self._facts.before):
            start = f"{'../' * DEPTH}{way}/"
            if to.startswith(start):
                key = layout.key_of(to[len(start) :])
                return key is not None and key.study == study
        return False

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        """An open folder beneath the tree; None when there is none. No link on the way is
        followed: it would lead out of the tree."""
        with contextlib.ExitStack() as stack:
            folder = self._folder
            try:
                for name in path.split("/"):
                    folder = stack.enter_context(_open(name, folder))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                yield None
                return
            yield folder


# --- pieces ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(name: str, folder: int) -> Iterator[int]:
    fd = durable.open_folder(name, folder=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _folders(folder: int) -> list[str]:
    return [
        name
        for name in os.listdir(folder)
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    ]


def _remove_if_empty(name: str, folder: int) -> None:
    try:
        durable.remove_folder(name, folder=folder)
    except OSError as error:
        if error.errno not in (*_ABSENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sweep(folder: int) -> None:
    """Clears away what was being made when its maker died."""
    with _open(OWN, folder) as own:
        for name in os.listdir(own):
            if name.startswith("new."):
                _remove_tree(name, own)


def _remove_tree(name: str, folder: int) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        durable.unlink(name, folder=folder)
        return
    with _open(name, folder) as below:
        for entry in os.listdir(below):
            _remove_tree(entry, below)
    durable.remove_folder(name, folder=folder)
