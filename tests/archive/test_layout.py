from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import UNDATED, InstanceKey, is_name

uids = st.from_regex(r"[0-9a-z]([0-9a-z._-]{0,61}[0-9a-z_-])?", fullmatch=True).filter(is_name)
keys = st.builds(InstanceKey, st.sampled_from(["202401", "undated"]), uids, uids, uids)


@given(keys)
def test_path_and_back(key: InstanceKey) -> None:
    path = layout.instance_path(key)
    assert layout.key_of(path) == key
    assert len(path) <= layout.LONGEST_PATH
    assert path.startswith(layout.series_folder(key) + "/")


def test_the_longest_path() -> None:
    uid = "1" * 64
    assert len(layout.instance_path(InstanceKey(UNDATED, uid, uid, uid))) == layout.LONGEST_PATH


@pytest.mark.parametrize(
    "path",
    [
        "202401/1/2/._3.dcm",
        "202401/1/2/3.DCM",
        "202401/1/2/3.nii",
        "202401/1/2/.dcm",
        "202401/1/2",
        "202413/1/2/3.dcm",
        "202401/../2/3.dcm",
        "/202401/1/2/3.dcm",
        "202401/1/2/x/3.dcm",
        "",
    ],
)
def test_foreign_paths_are_nobodys(path: str) -> None:
    assert layout.key_of(path) is None


@given(uids, st.from_regex(r"[0-9a-z]{1,16}", fullmatch=True))
def test_manifest_name_and_back(series: str, node: str) -> None:
    assert layout.series_of_manifest(layout.manifest_name(series, node)) == series


@pytest.mark.parametrize("name", ["study.json", "1.2.jsonl.tmp", "._1.2.ab.jsonl", "x.jsonl", ""])
def test_other_names_are_no_manifests(name: str) -> None:
    assert layout.series_of_manifest(name) is None


@given(uids)
def test_pending_name_and_back(study: str) -> None:
    assert layout.study_of_pending(layout.pending_name("202401", study)) == ("202401", study)


@pytest.mark.parametrize("name", ["reconcile", "202401", "202401~", "202401~../x", "2024~1", ".x"])
def test_other_names_mark_nothing(name: str) -> None:
    assert layout.study_of_pending(name) is None
