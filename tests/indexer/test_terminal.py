"""What stands on a terminal of 80 columns: bars, and messages beside them."""

from __future__ import annotations

from pathlib import Path

from plainpacs.archive.store.store import Archive
from tests.support.archives import new_archive, part10, store
from tests.support.terminal import seen

BAR = "━"


def test_messages_and_results_share_no_line_with_a_bar(tmp_path: Path) -> None:
    path, disc = new_archive(tmp_path / "a"), tmp_path / "disc"
    disc.mkdir()
    for number in range(60):
        data = part10(SOPInstanceUID=f"1.{number + 1}") if number % 4 else bytes(128) + b"DICM"
        (disc / f"{number:03}").write_bytes(data)
    code, screen, ever = seen("import", "-a", path, str(disc))
    assert code == 0
    assert any(line.startswith("importing ━") and "/s" in line for line in ever)
    named = [line for line in screen if line.endswith("(skipped)")]
    assert [line.split(":")[0] for line in named] == [f"{disc}/{n:03}" for n in range(0, 60, 4)]
    assert not any(BAR in line for line in screen)
    assert not any(BAR in line and str(disc) in line for line in ever)
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    for name in ("1.2.dcm", "1.3.dcm"):
        (folder / name).unlink()
    for arguments, bar in (
        (["verify"], "verifying"),
        (["repair"], "verifying"),
        (["repair", "--apply"], "repairing"),
        (["reindex", "--full"], "indexing"),
    ):
        _, screen, ever = seen(*arguments, "-a", path)
        assert any(line.startswith(f"{bar} ━") for line in ever), ever
        assert not any(BAR in line for line in screen)
        assert not any(BAR in line and "missing" in line for line in ever)


def test_conflicts_show_the_study_and_the_reason(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    study = "1.2.826.0.1.3680043.8.498.45787841905188114249962"
    with Archive.open(path) as archive:
        for name in ("Doe^Jane", "Doe^John"):
            uids = {"SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": f"{study}.1.1"}
            store(archive, StudyInstanceUID=study, PatientName=name, **uids)
    code, screen, ever = seen("conflicts", "-a", path)
    assert code == 1
    [row] = [line for line in screen if line.startswith("header ")]
    assert "…114249962 " in row
    assert any(line.strip().endswith("PatientName") for line in screen)
    assert any(line.startswith("comparing ━") for line in ever)
