"""Trees of links for people: their names, keeping them, and leaving alone what is not ours."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.app import cli
from plainpacs.archive.errors import NotALinkTree
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.indexer.links import names as link_names
from plainpacs.indexer.links import update
from plainpacs.indexer.links.file_names import folded, safe, told_apart
from plainpacs.indexer.links.names import By, folders
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store
from tests.support.steps import killed_at

STUDY = {"PatientName": "Doe^Jane", "PatientID": "P1", "StudyDescription": "chest"}
FOLDER = "Doe, Jane [P1]/2024-01-31 CT chest"


def silent(_: str) -> None:
    pass


def index(root: str) -> None:
    with Indexer.open(root) as indexer:
        indexer.once()


def old(root: str) -> None:
    """Nothing in the archive changed in the last seconds."""
    for folder, _, names in os.walk(root, topdown=False):
        for path in [*(os.path.join(folder, name) for name in names), folder]:
            facts = os.stat(path)
            os.utime(path, ns=(facts.st_mtime_ns - 10**10, facts.st_mtime_ns - 10**10))


def put(root: str, **changes: str | bytes | None) -> None:
    with Archive.open(root) as archive:
        store(archive, **(STUDY | changes))
    index(root)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two instances of one series, and one of another series, of one study."""
    root = new_archive(tmp_path / "archive")
    with Archive.open(root) as archive:
        for number in ("1", "2"):
            store(archive, **STUDY, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=number)
        more = {"SeriesInstanceUID": "1.2.3.5", "SOPInstanceUID": "1.2.3.5.1", "SeriesNumber": "3"}
        store(archive, **STUDY, **more)
    index(root)
    return root


def shown(tree: Path) -> dict[str, str]:
    """Everything but folders in a tree, and where links lead in the end."""
    found = {}
    for folder, below, names in os.walk(tree):
        if ".plainpacs-links" in below:
            below.remove(".plainpacs-links")
        for name in names:
            path = Path(folder, name)
            target = str(path.resolve()) if path.is_symlink() else "-"
            found[str(path.relative_to(tree))] = target.rpartition("/archive/")[2]
    return found


def facts(tree: Path) -> dict[str, tuple[int, int]]:
    """The inode and time of everything in a tree but our own folder's files."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in sorted(tree.rglob("*"))
        if ".plainpacs-links" not in path.parts
    }


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CT Thorax/Abdomen", "CT Thorax_Abdomen"),
        ('a\\b:c*d?e"f<g>h|i', "a_b_c_d_e_f_g_h_i"),
        ("  two   blanks. . ", "two blanks"),
        ("..", ""),
        (".hidden", "hidden"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("com\u00b9", "_com\u00b9"),
        ("Aux .x", "_Aux .x"),
        ("console", "console"),
        ("a\u202eb\x07c\u200bd", "a_b_c_d"),
        ("Mu\u0308ller", "M\u00fcller"),
        ("x ~12345678", "x -12345678"),
        ("\udcff", "_"),
        ("x" * 59 + ". y", "x" * 59),
        ("\U0001f600" * 50, "\U0001f600" * 30),
        ("\u5c71" * 99, "\u5c71" * 40),
    ],
)
def test_names_that_every_file_system_can_hold(text: str, name: str) -> None:
    assert safe(text) == name


@given(st.text(), st.integers(3, 80))
def test_no_text_makes_a_name_that_is_not_safe(text: str, longest: int) -> None:
    name = safe(text, longest)
    assert len(name.encode("utf-16-le")) <= 2 * longest
    assert len(name.encode()) <= 2 * longest
    assert name == name.strip(". ")
    assert not set(name) & set('\\/:*?"<>|~')
    assert name.isprintable()
    assert unicodedata.is_normalized("NFC", name)
    assert safe(name, longest) in (name, f"_{name}"[:longest])


@given(st.lists(st.sampled_from(["lung", "Lung", "LUNG", "\ufb01x", "fix", "Fix", "stra\u00dfe"])))
def test_names_are_told_apart_in_any_order(names: list[str]) -> None:
    wanted = [(number, str(number), name) for number, name in enumerate(names)]
    found = told_apart(wanted)
    assert len({folded(name) for name in found.values()}) == len(names)
    assert found == told_apart(reversed(wanted))
    for number, name in enumerate(names):
        alone = [one for one in names if folded(one) == folded(name)] == [name]
        assert (found[number] == name) is alone


def record(**more: object) -> dict[str, object]:
    patient = {"PatientName": "Doe^Jane", "PatientID": "P1"}
    study = {"StudyDate": "20240131", "StudyDescription": "chest", "ModalitiesInStudy": ["CT"]}
    return {**patient, **study, **more}


def test_two_patients_never_share_a_folder() -> None:
    found = folders(
        By.PATIENT,
        [
            ("1", record(PatientID="P/1")),
            ("2", record(PatientID="P_1")),
            ("3", record(PatientID="p_1", StudyDate="20240201")),
            ("4", record(PatientID="P_1", PatientName="DOE^JANE")),
            ("5", record(PatientID="P2", PatientName="DOE^JANE")),
            ("6", record(PatientID="P2", PatientName="Doe^Jane", StudyDate="1997.04.24")),
        ],
    )
    tops = {uid: path.partition("/")[0] for uid, path in found.items()}
    assert len({tops["1"], tops["2"], tops["3"]}) == 3
    assert tops["2"] == tops["4"], "the same patient, spelled in capitals"
    assert found["2"] != found["4"]
    assert tops["5"] == tops["6"] == "DOE, JANE [P2]", "nobody else's: not marked"
    assert found["6"] == "DOE, JANE [P2]/1997-04-24 CT chest"


def test_how_trees_are_arranged() -> None:
    whole = record(AccessionNumber="A77")
    assert folders(By.DATE, [("1", whole)])["1"] == "2024-01/2024-01-31 Doe, Jane [P1] CT chest"
    assert folders(By.ACCESSION, [("1", whole)])["1"] == "A77 Doe, Jane [P1]/2024-01-31 CT chest"
    assert folders(By.PATIENT, [("1", {})])["1"] == "unnamed [no ID]/undated"
    assert folders(By.DATE, [("1", {})])["1"] == "undated/undated unnamed [no ID]"
    odd = {"PatientName": 7, "ModalitiesInStudy": "x", "StudyDate": ["y"], "PatientID": {}}
    assert folders(By.ACCESSION, [("1", odd)])["1"] == "no number unnamed [no ID]/undated"


@pytest.mark.parametrize("by", By)
def test_no_path_is_too_long(by: By) -> None:
    long = dict.fromkeys(("PatientName", "PatientID", "AccessionNumber"), "W" * 200)
    study = {"StudyDescription": "W" * 200, "ModalitiesInStudy": ["ABCDEFGHIJKLMNOP", "CT"]}
    twins = [("1", record(**long, **study)), ("2", record(**long, **study, IssuerOfPatientID="x"))]
    more = [(f"{uid}.1", one) for uid, one in twins]
    series = [{"SeriesInstanceUID": n, "SeriesNumber": 999999, "SeriesDescription": "W" * 99}
              for n in "12"]  # fmt: skip
    names = link_names.link_names([("1", 999999), ("2", 999999)])
    for folder in folders(by, [*twins, *more]).values():
        for below in link_names.series_folders(series).values():
            for name in names.values():
                assert link_names.is_link_name(name)
                assert len(f"{folder}/{below}/{name}") <= layout.LONGEST_PATH


# --- keeping a tree -------------------------------------------------------------------------------


def test_a_tree_of_links(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    done = update.update(root, str(tree), silent)
    assert (done.studies, done.changed, done.removed) == (1, 1, 0)
    assert shown(tree) == {
        f"{FOLDER}/03 CT/0000.dcm": "202401/1.2.3/1.2.3.5/1.2.3.5.1.dcm",
        f"{FOLDER}/CT/0001.dcm": "202401/1.2.3/1.2.3.4/1.2.3.4.1.dcm",
        f"{FOLDER}/CT/0002.dcm": "202401/1.2.3/1.2.3.4/1.2.3.4.2.dcm",
    }
    assert not os.path.isabs(os.readlink(tree / FOLDER / "CT/0001.dcm"))
    os.rename(tmp_path, f"{tmp_path}.moved")
    try:
        assert Path(f"{tmp_path}.moved", "people", FOLDER, "CT/0001.dcm").read_bytes()[128:132]
    finally:
        os.rename(f"{tmp_path}.moved", tmp_path)


def test_a_second_run_touches_only_what_changed(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    put(root, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1", SOPInstanceUID="1.9.1.1",
        PatientID="P9")  # fmt: skip
    old(root)
    update.update(root, str(tree), silent)
    before = facts(tree)
    assert update.update(root, str(tree), silent) == update.Done(2, 0, 0)
    assert update.update(root, str(tree), silent, full=True) == update.Done(2, 0, 0)
    assert facts(tree) == before
    put(root, SOPInstanceUID="1.2.3.4.3", InstanceNumber="3")
    assert update.update(root, str(tree), silent) == update.Done(2, 1, 0)
    after = facts(tree)
    new = str(tree / FOLDER / "CT/0003.dcm")
    assert after.keys() - before.keys() == {new}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {str(tree / FOLDER / "CT")}


def test_it_is_what_a_tree_made_anew_would_be(root: str, tmp_path: Path) -> None:
    tree, anew = tmp_path / "people", tmp_path / "anew"
    update.update(root, str(tree), silent)
    # Another instance of the same number; another study of the same day; another patient.
    put(root, SOPInstanceUID="1.2.3.4.9", InstanceNumber="1")
    put(root, StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1", SOPInstanceUID="1.1.1.1")
    put(root, StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1", SOPInstanceUID="1.4.1.1",
        PatientID="p1")  # fmt: skip
    update.update(root, str(tree), silent)
    update.update(root, str(anew), silent)
    assert shown(tree) == shown(anew)
    assert len({path.casefold() for path in shown(tree)}) == 6
    assert len({path.casefold().partition("/")[0] for path in shown(tree)}) == 2
    shutil.rmtree(f"{root}/202401/1.2.3/1.2.3.4")
    shutil.rmtree(f"{root}/202401/1.1")
    with Indexer.open(root) as indexer:
        indexer.once()
    assert update.update(root, str(tree), silent).removed == 1
    shutil.rmtree(anew)
    update.update(root, str(anew), silent)
    assert shown(tree) == shown(anew)
    assert len(shown(tree)) == 2
    left = {str(one.relative_to(tree)) for one in tree.rglob("*") if one.is_dir()}
    assert left - {".plainpacs-links"} == {
        str(one.relative_to(anew)) for one in anew.rglob("*") if one.is_dir()
    } - {".plainpacs-links"}


def test_arranged_otherwise(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    update.update(root, str(tree), silent)
    update.update(root, str(tree), silent, by=By.DATE)
    assert {path.split("/")[0] for path in shown(tree)} == {"2024-01"}
    update.update(root, str(tree), silent)
    assert {path.split("/")[0] for path in shown(tree)} == {"2024-01"}, "as it was"
    assert sorted(os.listdir(tree)) == [".plainpacs-links", "2024-01"]


def test_a_study_of_two_months_has_one_folder(root: str, tmp_path: Path) -> None:
    put(root, StudyDate="20240201", SOPInstanceUID="1.2.3.4.7", InstanceNumber="7")
    update.update(root, str(tmp_path / "people"), silent)
    found = shown(tmp_path / "people")
    assert found[f"{FOLDER}/CT/0007.dcm"] == "202402/1.2.3/1.2.3.4/1.2.3.4.7.dcm"
    assert found[f"{FOLDER}/CT/0001.dcm"] == "202401/1.2.3/1.2.3.4/1.2.3.4.1.dcm"


def test_the_archive_is_moved(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    update.update(root, str(tree), silent)
    (tmp_path / "else").mkdir()
    moved = str(tmp_path / "else" / "archive")
    os.rename(root, moved)
    update.update(moved, str(tree), silent)
    assert len(shown(tree)) == 3
    assert all(Path(tree, path).exists() for path in shown(tree))


# --- what is not ours -----------------------------------------------------------------------------


def test_what_others_put_there_stays(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    update.update(root, str(tree), silent)
    study = tree / FOLDER
    outside = tmp_path / "outside"
    (outside / "CT").mkdir(parents=True)
    shutil.copy(study / "CT/0001.dcm", outside / "CT/0001.dcm")
    os.symlink(os.readlink(study / "CT/0001.dcm"), study / "CT/best.dcm")
    os.symlink("0001.dcm", study / "CT/0009.dcm")
    (study / "CT/0008.dcm").write_text("a file")
    (study / "notes.txt").write_text("mine")
    (study / "mine").mkdir()
    os.symlink(outside / "CT", study / "elsewhere")
    shutil.rmtree(f"{root}/202401")
    index(root)
    update.update(root, str(tree), silent)
    assert sorted(shown(tree)) == [
        f"{FOLDER}/CT/0008.dcm",
        f"{FOLDER}/CT/0009.dcm",
        f"{FOLDER}/CT/best.dcm",
        f"{FOLDER}/notes.txt",
    ]
    assert (study / "mine").is_dir()
    assert (outside / "CT/0001.dcm").exists()


def test_what_is_in_the_way_is_said_and_stays(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    update.update(root, str(tree), silent)
    taken = tree / FOLDER / "CT/0001.dcm"
    taken.unlink()
    taken.write_text("mine")
    shutil.rmtree(tree / FOLDER / "03 CT")
    (tree / FOLDER / "03 CT").write_text("mine")
    done = CliRunner().invoke(cli.root, ["-a", root, "links", str(tree), "--full"])
    assert done.exit_code == 1
    assert f"{FOLDER}/CT/0001.dcm" in done.output
    assert f"{FOLDER}/03 CT" in done.output
    assert taken.read_text() == "mine"
    taken.unlink()
    (tree / FOLDER / "03 CT").unlink()
    old(root)
    assert CliRunner().invoke(cli.root, ["-a", root, "links", str(tree)]).exit_code == 0
    assert len(shown(tree)) == 3


def test_no_link_of_others_is_followed(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    update.update(root, str(tree), silent)
    outside = tmp_path / "outside"
    os.rename(tree / "Doe, Jane [P1]", outside)
    os.symlink(outside, tree / "Doe, Jane [P1]")
    before = facts(outside)
    done = update.update(root, str(tree), silent, full=True)
    assert done.in_the_way == (FOLDER,)
    shutil.rmtree(f"{root}/202401")
    index(root)
    update.update(root, str(tree), silent)
    assert facts(outside) == before


def test_where_links_may_not_be(root: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    update.update(root, str(tmp_path / "tree"), silent)
    for path, words in [
        (root, "is an archive"),
        (f"{root}/202401", "among the files"),
        (f"{root}/202401/1.2.3/x", "among the files"),
        (f"{root}/undated/x", "among the files"),
        (f"{root}/.plainpacs/x", "among the files"),
        (str(tmp_path / "full"), "name a new folder, or an empty one"),
        (str(tmp_path / "tree/x"), "another tree"),
    ]:
        before = facts(tmp_path)
        with pytest.raises(NotALinkTree, match=words):
            update.update(root, path, silent)
        assert facts(tmp_path) == before
    update.update(root, f"{root}/by-patient", silent)
    assert len(shown(Path(root, "by-patient"))) == 3
    other = new_archive(tmp_path / "other")
    with pytest.raises(NotALinkTree, match="another archive"):
        update.update(other, str(tmp_path / "tree"), silent)
    assert len(shown(tmp_path / "tree")) == 3


def test_removing_a_tree(root: str, tmp_path: Path) -> None:
    tree = tmp_path / "people"
    run = CliRunner()
    assert run.invoke(cli.root, ["-a", root, "links", str(tree)]).exit_code == 0
    assert update.known(root) == [str(tree)]
    (tree / "mine").touch()
    done = run.invoke(cli.root, ["-a", root, "links", str(tree), "--remove"])
    assert done.exit_code == 0, done.output
    assert os.listdir(tree) == ["mine"]
    assert update.known(root) == []
    assert run.invoke(cli.root, ["-a", root, "links"]).exit_code == 1


# --- killed ---------------------------------------------------------------------------------------


def test_killed_anywhere_the_next_run_finishes(root: str, tmp_path: Path) -> None:
    old(root)
    update.update(root, str(tmp_path / "whole"), silent)
    wanted = shown(tmp_path / "whole")
    step = 0
    while True:
        tree = tmp_path / f"t{step}"
        ended = not killed_at(step, lambda tree=tree: update.update(root, str(tree), silent))
        if ended:
            break
        if tree.exists():
            found = shown(tree)
            assert found in ({}, wanted), "a new study appears whole"
        update.update(root, str(tree), silent)
        assert shown(tree) == wanted
        assert sorted(os.listdir(tree / ".plainpacs-links")) == ["lock", "studies.jsonl",
                                                                 "tree.json"]  # fmt: skip
        step += 1
    assert step > 15


# --- purging --------------------------------------------------------------------------------------


def said_in(tree: Path) -> str:
    """All names below a tree, and all that its own files say."""
    names = [str(path.relative_to(tree)) for path in tree.rglob("*")]
    own = [path.read_text() for path in (tree / ".plainpacs-links").iterdir() if path.is_file()]
    return "\n".join(names + own)


@pytest.mark.parametrize("first", [[], ["rm", "--yes", "1.2.3"]])
def test_a_purge_leaves_no_name_in_any_tree(root: str, tmp_path: Path, first: list[str]) -> None:
    put(root, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1", SOPInstanceUID="1.9.1.1",
        PatientID="P9", PatientName="Roe^Richard")  # fmt: skip
    outside, inside = tmp_path / "people", Path(root, "by-date")
    update.update(root, str(outside), silent)
    update.update(root, str(inside), silent, by=By.DATE)
    run = CliRunner()
    if first:
        assert run.invoke(cli.root, ["-a", root, *first]).exit_code == 0
    done = run.invoke(cli.root, ["-a", root, "rm", "--purge", "--yes", "1.2.3"])
    assert done.exit_code == 0, done.output
    for tree in (outside, inside):
        assert "Doe" not in said_in(tree)
        assert "Roe" in said_in(tree)
        assert len(shown(tree)) == 1
    assert "Doe" not in Path(root, layout.LINKS).read_text()


def test_a_purge_says_what_it_could_not_clear(root: str, tmp_path: Path) -> None:
    for name in ("gone", "kept", "damaged"):
        update.update(root, str(tmp_path / name), silent)
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "kept" / FOLDER / "notes.txt").touch()
    (tmp_path / "damaged/.plainpacs-links/tree.json").write_text("{")
    done = CliRunner().invoke(cli.root, ["-a", root, "rm", "--purge", "--yes", "1.2.3"])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/gone is not there" in done.output
    assert f"{tmp_path}/kept: other files are in them" in done.output
    assert f"links in {tmp_path}/damaged are not cleared" in done.output
    assert shown(tmp_path / "kept") == {f"{FOLDER}/notes.txt": "-"}


def test_a_copy_without_our_folder_has_links_too(root: str, tmp_path: Path) -> None:
    shutil.rmtree(f"{root}/.plainpacs")
    said: list[str] = []
    update.update(root, str(tmp_path / "people"), said.append)
    assert len(shown(tmp_path / "people")) == 3
    assert any("rm --purge" in one for one in said)
    assert not os.path.exists(f"{root}/.plainpacs")


def test_the_archive_itself_has_no_symbolic_link(root: str, tmp_path: Path) -> None:
    update.update(root, str(tmp_path / "people"), silent)
    assert not [path for path in Path(root).rglob("*") if path.is_symlink()]
    assert all(is_name(path.name) for path in Path(root, "202401/1.2.3").iterdir() if path.is_dir())
