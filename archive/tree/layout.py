"""Where things lie, as pure arithmetic on names, both ways.

    ROOT/202401/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm
    ROOT/202401/<StudyInstanceUID>/<SeriesInstanceUID>.<node>.jsonl
    ROOT/202401/<StudyInstanceUID>/study.json
    ROOT/202401/studies.jsonl

Names are checked on the way in (``identity``) and on the way out: what is found in the tree is
taken for ours only when it is spelled exactly as we spell it, so that ``._1.2.dcm``, ``.DS_Store``
or a ``T1.nii.gz`` beside the instances is nobody's.
"""

from __future__ import annotations

import re
from functools import lru_cache

from plainpacs.archive.tree.identity import InstanceKey, is_month, is_name

MARKER = "plainpacs.json"
CATALOGUE = "studies.jsonl"
STUDY_INDEX = "study.json"
INSTANCE_ENDING = ".dcm"
MANIFEST_ENDING = ".jsonl"

INTERNAL = ".plainpacs"
INCOMING = f"{INTERNAL}/incoming"
PENDING = f"{INTERNAL}/pending"
INDEXING = f"{INTERNAL}/indexing"
CONFLICTS = f"{INTERNAL}/conflicts"
TRASH = f"{INTERNAL}/trash"
SEEN = f"{INTERNAL}/seen"
INSTANCES = f"{INTERNAL}/instances"
SEVERAL = f"{INTERNAL}/several"
"""The studies that lie in several months."""
HOOKS = f"{INTERNAL}/hooks"
"""What the user's commands were run for, and what they wait for."""
LINKS = f"{INTERNAL}/links"
"""Which trees of links lead into the archive."""
COMMITMENTS = f"{INTERNAL}/commitments"
"""The requests for storage commitment that are not answered yet."""
WEB = f"{INTERNAL}/web"
"""The headers of series as DICOM JSON, compressed: ``<yyyyMM>/<study>/<series>.json.gz``."""
AUDIT = f"{INTERNAL}/audit"
FORBIDDEN = f"{INTERNAL}/forbidden"
"""The UIDs that are refused."""
REMOVAL_LOCK = f"{INTERNAL}/removal.lock"
"""Locked by whoever removes, restores or purges."""
REPLACING_LOCK = f"{INTERNAL}/replacing.lock"
"""Locked for a moment by whoever puts a file in another's place, or takes one away."""
INDEXER_LOCK = f"{INTERNAL}/indexer.lock"
"""Locked by the one indexer at work."""
INTERNAL_FOLDERS = (INTERNAL, INCOMING, PENDING, INDEXING, CONFLICTS, TRASH, SEEN, INSTANCES)

LONGEST_PATH = 206
"""No relative path outside ``.plainpacs`` has more characters (Windows budget: 260 with ROOT)."""

_NODE = re.compile(r"[0-9a-z]{1,16}", re.ASCII)


def study_folder(month: str, study: str) -> str:
    """``202401/1.2.3``"""
    return f"{month}/{study}"


def series_folder(key: InstanceKey) -> str:
    """``202401/1.2.3/1.2.3.4``"""
    return f"{key.month}/{key.study}/{key.series}"


def instance_path(key: InstanceKey) -> str:
    """``202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm``, relative to ROOT."""
    return f"{key.month}/{key.study}/{key.series}/{key.instance}{INSTANCE_ENDING}"


def instance_name(instance: str) -> str:
    """``1.2.3.4.5.dcm``"""
    return instance + INSTANCE_ENDING


@lru_cache(maxsize=1 << 16)  # the names of a study that grows are asked for again and again
def instance_of(name: str) -> str | None:
    """The SOP Instance UID that the file ``name`` stands for; None for a foreign file."""
    if name.endswith(INSTANCE_ENDING) and is_name(uid := name[: -len(INSTANCE_ENDING)]):
        return uid
    return None


def key_of(path: str) -> InstanceKey | None:
    """The key of the instance at ``path`` (relative, with ``/``); None when it is not one's.

    >>> key_of("202401/1.2/1.2.3/1.2.3.4.dcm")
    InstanceKey(month='202401', study='1.2', series='1.2.3', instance='1.2.3.4')
    """
    parts = path.split("/")
    if len(parts) != 4 or not is_month(parts[0]):
        return None
    if not is_name(parts[1]) or not is_name(parts[2]):
        return None
    instance = instance_of(parts[3])
    return None if instance is None else InstanceKey(parts[0], parts[1], parts[2], instance)


def is_node(name: str) -> bool:
    """Whether ``name`` may name a node: 1 to 16 lower-case letters and digits."""
    return _NODE.fullmatch(name) is not None


def manifest_name(series: str, node: str) -> str:
    """``<SeriesInstanceUID>.<node>.jsonl``, in the study's folder."""
    return f"{series}.{node}{MANIFEST_ENDING}"


def series_of_manifest(name: str) -> str | None:
    """The Series Instance UID whose manifest ``name`` is, of whatever node; None for others."""
    if not name.endswith(MANIFEST_ENDING):
        return None
    series, _, node = name[: -len(MANIFEST_ENDING)].rpartition(".")
    return series if is_node(node) and is_name(series) else None


def pending_name(month: str, study: str) -> str:
    """``202401~1.2.3``: the marker, in ``pending`` and ``indexing``, of a study to index."""
    return f"{month}~{study}"


def study_of_pending(name: str) -> tuple[str, str] | None:
    """(month, study) of a marker's name; None when it is not one."""
    month, tilde, study = name.partition("~")
    return (month, study) if tilde and is_month(month) and is_name(study) else None
