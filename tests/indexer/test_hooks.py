"""The user's commands: when a study settled, for each instance; also when anybody is killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.archive.app.hook_command import STUDY_PLACES, HookWords, LooksLikeAnOption
from plainpacs.archive.app.settings import Settings, load
from plainpacs.archive.errors import BadSettings
from plainpacs.archive.store.manifest import Provenance
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.hooks import journal, scheduler
from plainpacs.indexer.hooks.journal import History, Kind, Level
from plainpacs.indexer.hooks.scheduler import HookSettings
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import eventually, new_archive, part10, store, tree
from tests.support.peer import STUDY as STUDY_SENT
from tests.support.peer import Peer
from tests.support.peer import data_set as peer_data_set
from tests.support.serve import Serve, serve
from tests.support.steps import at_step

__all__ = ["serve"]
STUDY = ("202401", "1.2.3")
BEFORE = "2000-01-01T00:00:00.000Z"


@pytest.fixture
def path(memory: Path) -> str:
    return new_archive(memory / "a")


class Script:
    """A command that writes down what it was told: its arguments and HOOK_ variables."""

    def __init__(self, folder: Path, body: str = "") -> None:
        self.file = folder / "command.sh"
        self._said = folder / "said"
        self.file.write_text(
            f'#!/bin/sh\nsaid=$(echo ":$*"; env | grep ^HOOK_)\n'
            f"printf '%s\\n\\n' \"$said\" >> '{self._said}'\n{body}\n"
        )
        self.file.chmod(0o755)

    def calls(self) -> list[dict[str, str]]:
        if not self._said.exists():
            return []
        found = []
        for block in self._said.read_text().split("\n\n"):
            if block.strip():
                first, *rest = block.strip("\n").split("\n")
                found.append({"": first[1:], **dict(line.split("=", 1) for line in rest)})
        return found

    def __str__(self) -> str:
        return shlex.quote(str(self.file))


@pytest.fixture
def script(memory: Path) -> Script:
    return Script(memory)


def settings(
    study: str = "", instance: str = "", quiet: float = 0.1, at_once: int = 2, since: str = BEFORE
) -> HookSettings:
    chosen = Settings(
        on_study_settled=study, on_instance=instance, settle_seconds=quiet, hooks_at_once=at_once
    )
    return HookSettings(chosen, since)


@contextmanager
def at_work(path: str, hooks: HookSettings | None) -> Iterator[Indexer]:
    with Indexer.open(path, hooks=hooks) as indexer:
        thread = threading.Thread(target=indexer.run)
        thread.start()
        try:
            yield indexer
        finally:
            indexer.stop()
            thread.join()


def stored(path: str, number: int = 1, study: str = "1.2.3", **changes: Any) -> None:
    with Archive.open(path) as archive:
        store(archive, SOPInstanceUID=f"{study}.9.{number}", StudyInstanceUID=study, **changes)


def waiting(path: str) -> list[str]:
    """Every marker there is, of what waits and of what failed."""
    names = (Path(path, ".plainpacs/hooks", one) for one in ("study", "instance", "failed"))
    return sorted(str(p.relative_to(folder.parent)) for folder in names for p in folder.glob("*"))


def lines_of(path: str, study: tuple[str, str] = STUDY) -> list[dict[str, Any]]:
    file = Path(path, ".plainpacs/hooks/log", study[0], f"{study[1]}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def idle(path: str) -> bool:
    pending = (Path(path, ".plainpacs", one) for one in ("pending", "indexing"))
    return not waiting(path) and not any(os.listdir(one) for one in pending)


# --- a study that settles -------------------------------------------------------------------------


def test_a_settled_study_is_told_of_once(path: str, script: Script) -> None:
    with at_work(path, settings(f"{script} {{path}} x{{StudyInstanceUID}}")):
        stored(path, 1)
        stored(path, 2, SeriesInstanceUID="1.2.3.7")
        [call] = eventually(script.calls)
        eventually(lambda: idle(path))
    folder = str(Path(path, "202401", "1.2.3"))
    assert call[""] == f"{folder} x1.2.3"
    assert call["HOOK_KIND"] == "study"
    assert (call["HOOK_PATH"], call["HOOK_ARCHIVE"]) == (folder, path)
    assert (call["HOOK_INSTANCES"], call["HOOK_SERIES"]) == ("2", "2")
    assert (call["HOOK_CALLING_AE"], call["HOOK_CALLED_AE"]) == ("CT1", "DRDCM")
    assert call["HOOK_LAST_STORED"] >= call["HOOK_FIRST_STORED"] > BEFORE
    [settled] = lines_of(path)
    assert (settled["instances"], settled["exit"]) == (2, 0)
    assert "Doe" not in json.dumps([settled, call])


def test_it_settles_again_when_it_grows_and_not_otherwise(path: str, script: Script) -> None:
    hooks = settings(str(script))
    stored(path)
    with at_work(path, hooks):
        eventually(lambda: len(script.calls()) == 1 and idle(path))
        stored(path)  # the same instance: a duplicate
        Path(path, *STUDY, "study.json").unlink()
        Path(path, ".plainpacs/pending/202401~1.2.3").touch()
        eventually(lambda: idle(path))
    with Indexer.open(path) as indexer:
        indexer.once(full=True)
    with at_work(path, hooks):
        stored(path, 2)
        eventually(lambda: len(script.calls()) == 2 and idle(path))
    assert [call["HOOK_INSTANCES"] for call in script.calls()] == ["1", "2"]
    assert [line["instances"] for line in lines_of(path) if "settled" in line] == [1, 2]


def test_nothing_is_told_of_what_was_there_before(path: str, script: Script) -> None:
    stored(path)
    time_ns = max(p.stat().st_mtime_ns for p in Path(path).rglob("*.dcm"))
    with at_work(path, settings(str(script), str(script), since=stamp(time_ns + 1_000_000))):
        eventually(lambda: Path(path, *STUDY, "study.json").exists() and idle(path))
        stored(path, study="1.9")
        eventually(lambda: len(script.calls()) == 2 and idle(path))
    assert {call["HOOK_STUDY_INSTANCE_UID"] for call in script.calls()} == {"1.9"}


def test_it_is_not_settled_while_instances_come(path: str, script: Script) -> None:
    with at_work(path, settings(str(script), quiet=3.0)):
        for number in range(5):
            stored(path, number)
            time.sleep(0.9)  # what is tested is that time passes
        eventually(lambda: len(script.calls()) == 1 and idle(path))
    assert script.calls()[0]["HOOK_INSTANCES"] == "5"


def test_a_study_that_is_gone_before_it_settled_is_not_told_of(path: str, script: Script) -> None:
    stored(path)
    with at_work(path, settings(str(script), quiet=600)):
        eventually(lambda: waiting(path) == ["study/202401~1.2.3"])
    for file in Path(path, *STUDY, "1.2.3.4").iterdir():
        file.unlink()
    with at_work(path, settings(str(script))):
        eventually(lambda: idle(path))
    assert script.calls() == []


def test_a_restart_does_not_begin_the_while_anew(path: str, script: Script) -> None:
    stored(path)
    with at_work(path, settings(str(script), quiet=600)):
        eventually(lambda: waiting(path) == ["study/202401~1.2.3"])
    folder = Path(path, *STUDY, "1.2.3.4")
    long_ago = time.time() - 500
    os.utime(folder, (long_ago, long_ago))
    with at_work(path, settings(str(script), quiet=400)):
        eventually(lambda: len(script.calls()) == 1 and idle(path))


def test_other_nodes_clocks_do_not_matter(path: str, script: Script) -> None:
    stored(path)
    hooks = settings(str(script), str(script))
    with at_work(path, hooks):
        eventually(lambda: len(script.calls()) == 2 and idle(path))
        earlier = Provenance("CT1", stored=time.time_ns() - 10**12)
        with Archive.open(path) as archive:
            store(archive, earlier, SOPInstanceUID="1.7")
        eventually(lambda: len(script.calls()) == 4 and idle(path))


def test_when_turned_off_nothing_runs_and_what_waits_stays(path: str, script: Script) -> None:
    stored(path)
    with at_work(path, settings(str(script), quiet=600)):
        eventually(lambda: waiting(path))
    with at_work(path, None):
        stored(path, 1, study="1.9")
        eventually(lambda: Path(path, "202401", "1.9", "study.json").exists())
    assert waiting(path) == ["study/202401~1.2.3"]
    with at_work(path, settings(str(script), since=stamp(time.time_ns()))):
        eventually(lambda: idle(path))
    assert [call["HOOK_STUDY_INSTANCE_UID"] for call in script.calls()] in ([], ["1.2.3"])


def test_indexing_once_leaves_it_to_whoever_runs_commands(path: str, script: Script) -> None:
    with at_work(path, settings(str(script), str(script))):
        pass
    stored(path)
    with Indexer.open(path) as indexer:
        indexer.once()
    assert waiting(path) == ["instance/202401~1.2.3", "study/202401~1.2.3"]
    with at_work(path, settings(str(script), str(script))):
        eventually(lambda: len(script.calls()) == 2 and idle(path))


# --- instances ------------------------------------------------------------------------------------


def test_each_instance_is_told_of_once(path: str, script: Script) -> None:
    with at_work(path, settings(instance=f"{script} {{path}}")):
        for number in range(6):
            stored(path, number)
        eventually(lambda: len(script.calls()) >= 6 and idle(path))
        stored(path, 3)
        stored(path, 6)
        eventually(lambda: len(script.calls()) >= 7 and idle(path))
    with at_work(path, settings(instance=f"{script} {{path}}")):
        stored(path, 7)
        eventually(lambda: len(script.calls()) >= 8 and idle(path))
    calls = script.calls()
    assert [call["HOOK_SOP_INSTANCE_UID"] for call in calls] == [f"1.2.3.9.{n}" for n in range(8)]
    assert all(Path(call[""]).is_file() for call in calls)
    assert calls[0]["HOOK_ORIGIN"] == "c-store"


def test_what_is_imported_and_restored(path: str, script: Script, memory: Path) -> None:
    (memory / "one").write_bytes(part10())
    with at_work(path, settings(str(script), str(script))):
        CliRunner().invoke(cli.root, ["import", "-a", path, str(memory / "one")])
        eventually(lambda: len(script.calls()) == 2 and idle(path))
        done = CliRunner().invoke(cli.root, ["rm", "--yes", "-a", path, "1.2.3"])
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(cli.root, ["restore", "-a", path, "1.2.3"])
        assert done.exit_code == 0, done.output
        eventually(lambda: idle(path))
        stored(path, 2, study="1.9")
        eventually(lambda: len(script.calls()) == 4 and idle(path))
    assert [call["HOOK_STUDY_INSTANCE_UID"] for call in script.calls()[2:]] == ["1.9", "1.9"]


# --- failing --------------------------------------------------------------------------------------


def test_a_command_that_fails_is_tried_again_and_then_listed(
    path: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BACK_OFF", (0.05, 0.05))
    script = Script(memory, f"test -e {memory}/well")
    stored(path)
    with at_work(path, settings(str(script))):
        eventually(lambda: waiting(path) == ["failed/study~202401~1.2.3"])
        assert len(script.calls()) == 3
        assert [line["exit"] for line in lines_of(path)] == [1]
        (memory / "well").touch()
        stored(path, 2)
        eventually(lambda: len(script.calls()) == 4 and idle(path))


def test_what_failed_for_good_can_be_tried_again(
    path: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BACK_OFF", ())
    script = Script(memory, f"test -e {memory}/well")
    stored(path, 1)
    stored(path, 2)
    with at_work(path, settings(instance=str(script))) as indexer:
        eventually(lambda: waiting(path) == ["failed/instance~202401~1.2.3"])
        assert len(script.calls()) == 2, "one that fails does not hold up the next"
        (memory / "well").touch()
        book = journal.HookJournal(indexer._writer.root)
        assert book.failed() == [(Kind.INSTANCE, STUDY)]
        book.try_again(Kind.INSTANCE, STUDY)
        assert book.failed() == []
    with at_work(path, settings(instance=str(script))):
        eventually(lambda: len(script.calls()) == 4 and idle(path))


def test_a_program_that_is_not_there(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BACK_OFF", ())
    stored(path)
    with at_work(path, settings("/nowhere/at/all")):
        eventually(lambda: any(line.get("exit") == 127 for line in lines_of(path)))
    said = caplog.text
    assert "cannot be run: No such file" in said
    assert "Doe" not in said


def test_what_it_prints_is_logged_and_bounded(
    path: str, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    noise = "yes 0123456789 | head -c 5000000; printf '\\nthe\\033[2J end'; sleep 300 &"
    script = Script(memory, noise)
    stored(path)
    with at_work(path, settings(str(script))):
        eventually(lambda: idle(path) and script.calls())
    said = caplog.text
    assert "says: the\N{REPLACEMENT CHARACTER}[2J end" in said
    assert "the command ended with 0" in said
    assert 3000 < len(said) < 60_000


def test_the_limit_and_the_order(path: str, memory: Path) -> None:
    body = f"""
    mkdir {memory}/at.work || echo two >> {memory}/two; sleep 0.2; rmdir {memory}/at.work"""
    script = Script(memory, body)
    studies = [f"1.{number}" for number in (5, 3, 4, 1, 2)]
    for study in studies:
        stored(path, study=study)
    with at_work(path, settings(str(script), quiet=600)):
        eventually(lambda: len(waiting(path)) == 5)
    for number, study in enumerate(studies):
        quiet_since = time.time() - 100 + number
        os.utime(Path(path, "202401", study, "1.2.3.4"), (quiet_since, quiet_since))
    with at_work(path, settings(str(script), at_once=1)):
        eventually(lambda: len(script.calls()) == 5 and idle(path))
    assert not (memory / "two").exists()
    assert [call["HOOK_STUDY_INSTANCE_UID"] for call in script.calls()] == studies


# --- the commands of plainpacs --------------------------------------------------------------------


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.root, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_status_and_hooks_name_what_failed(
    path: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BACK_OFF", ())
    stored(path)
    with at_work(path, settings("/nowhere/at/all", str(script), at_once=1)):
        eventually(lambda: waiting(path) == ["failed/study~202401~1.2.3"])
    assert "--on-study-settled of 202401/1.2.3, exit status 127" in run("status", "-a", path)
    [failed] = json.loads(run("status", "-a", path, "--format", "json"))["failed_hooks"]
    assert (failed["kind"], failed["failing"], failed["exit"]) == ("study", 1, 127)
    assert run("hooks", "-a", path) == "failed   study     202401/1.2.3\n"
    before = tree(path, internal=True)
    run("hooks", "-a", path)
    assert tree(path, internal=True) == before
    assert run("hooks", "--retry", "-a", path) == "waiting  study     202401/1.2.3\n"
    assert "on-study-settled" not in run("status", "-a", path)
    with at_work(path, settings(str(script), str(script))):
        eventually(lambda: idle(path))
    assert [call["HOOK_KIND"] for call in script.calls()] == ["instance", "study"]


def test_serve_runs_them_and_plainpacs_works_inside(
    serve: Serve, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAINPACS_SETTLE_SECONDS", "0.2")
    script = Script(memory, f"{sys.executable} -m plainpacs ls --format paths > {memory}/shown")
    service = serve("--on-study-settled", str(script), "--on-instance", f"{script} {{peer}}")
    with Peer(service.port) as peer:
        assert peer.store(peer_data_set()) == 0, "before there is an indexer"
        eventually(lambda: len(script.calls()) == 2 and idle(str(service.root)), 40)
        os.kill(service.indexer(), signal.SIGKILL)
        assert peer.store(peer_data_set(sop="1.2.9"), sop="1.2.9") == 0
        eventually(lambda: len(script.calls()) == 4 and idle(str(service.root)), 40)
    assert [call[""] for call in script.calls()] == ["127.0.0.1", ""] * 2
    assert {call["HOOK_CALLING_AE"] for call in script.calls()} == {"TESTER"}
    assert STUDY_SENT in (memory / "shown").read_text()
    assert service.stop() == 0


def test_a_command_knows_the_nodes_of_serve(serve: Serve, tmp_path: Path) -> None:
    """So that the command one writes first forwards what came."""
    other = serve("--aet", "OTHER", root=tmp_path / "other")
    address = f"OTHER@127.0.0.1:{other.port}"
    forward = f"{sys.executable} -m plainpacs send OTHER {{StudyInstanceUID}}"
    service = serve(*("--nodes", address, "--on-study-settled", forward, "--settle-seconds", "0.2"))
    with Peer(service.port) as peer:
        assert peer.store(peer_data_set()) == 0
    [sent] = eventually(lambda: list(other.root.glob("[0-9]*/*/*/*.dcm")), 40)
    assert sent.relative_to(other.root) in {
        one.relative_to(service.root) for one in service.root.glob("[0-9]*/*/*/*.dcm")
    }
    assert service.stop() == other.stop() == 0


# --- killed ---------------------------------------------------------------------------------------


def work_through(indexer: Indexer, path: str) -> None:
    """Until nothing is left to be done; in this thread alone, as steps are counted."""
    indexer._hooks.turn_on()
    indexer.once()
    deadline = time.monotonic() + 20
    while not idle(path):
        indexer._hooks.turn()
        assert time.monotonic() < deadline
        time.sleep(0.005)  # a process of another program ends


def killed_at_work(step: int, path: str, hooks: HookSettings) -> bool:
    """The indexer, killed before its change ``step`` once it is open; False: it had fewer."""
    child = os.fork()
    if not child:
        try:
            with Indexer.open(path, hooks=hooks) as indexer:
                with at_step(step, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                    work_through(indexer, path)
                os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("kind", ["study", "instance"])
@pytest.mark.timeout(300)
def test_killed_before_every_change_nothing_is_forgotten(kind: str, memory: Path) -> None:
    template = memory / "template"
    new_archive(template)
    stored(str(template), 1)
    stored(str(template), 2)
    again = 0
    for step in range(200):
        folder = memory / str(step)
        folder.mkdir()
        path = str(shutil.copytree(template, folder / "a"))
        script = Script(folder)
        study, instance = (str(script), "") if kind == "study" else ("", str(script))
        hooks = settings(study, instance, quiet=0.001)
        killed = killed_at_work(step, path, hooks)
        with Indexer.open(path, hooks=hooks) as indexer:
            work_through(indexer, path)
        calls = [call.get("HOOK_SOP_INSTANCE_UID", "") for call in script.calls()]
        wanted = [""] if kind == "study" else ["1.2.3.9.1", "1.2.3.9.2"]
        assert sorted(set(calls)) == wanted, f"killed before step {step}"
        again += len(calls) - len(wanted)
        assert len(calls) <= len(wanted) + 1, f"killed before step {step}"
        assert waiting(path) == []
        shutil.rmtree(folder)
        if not killed:
            break
    assert 25 < step < 199
    assert again <= step / 3, "only what is killed before its line is there"


def test_killed_while_the_command_is_at_work(path: str, memory: Path) -> None:
    """The command goes on, and whoever indexes next runs it again, but not beside itself."""
    script = Script(
        memory, f"touch {memory}/began; while test ! -e {memory}/go; do sleep 0.02; done"
    )
    stored(path)
    hooks = settings(str(script))
    child = os.fork()
    if not child:
        with at_work(path, hooks):
            threading.Event().wait(60)
        os._exit(0)
    eventually((memory / "began").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with at_work(path, hooks):
        eventually(lambda: Path(path, *STUDY, "study.json").exists())
        time.sleep(0.5)  # it would have been started by now
        assert len(script.calls()) == 1
        (memory / "go").touch()
        eventually(lambda: idle(path))
    assert len(script.calls()) == 2


def test_what_a_command_left_running_holds_up_nothing(path: str, memory: Path) -> None:
    script = Script(memory, f"test -e {memory}/1 || {{ touch {memory}/1; sleep 300 & exit 1; }}")
    stored(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "BACK_OFF", (0.05,))
        with at_work(path, settings(str(script))):
            eventually(lambda: idle(path) and len(script.calls()) == 2)
            stored(path, 2)
            eventually(lambda: idle(path) and len(script.calls()) == 3)
    assert [line["exit"] for line in lines_of(path)] == [0, 0]


# --- the words ------------------------------------------------------------------------------------


def test_no_shell_ever_sees_it() -> None:
    words = HookWords.parse("echo '{path} it' {month}", STUDY_PLACES)
    values = {"path": "/a/$(reboot)/'; rm *", "month": "202401"}
    assert words.filled(values) == ["echo", "/a/$(reboot)/'; rm * it", "202401"]
    with pytest.raises(LooksLikeAnOption):
        words.filled({"path": "/", "month": "-rf"})
    assert HookWords.parse("x -n={month}", STUDY_PLACES).filled({"month": "-1"}) == ["x", "-n=-1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("copy {StudyUID}", "is none of path"),
        ("'open", "No closing quotation"),
        ("{path}", "named, not put in"),
        ("''", "names no program"),
    ],
)
def test_a_command_that_cannot_be_is_refused_at_the_start(text: str, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        load({"on_study_settled": text}, environ={})


def test_a_list_of_words_will_do(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('on-instance = ["a b", "{path}"]\nsettle-seconds = 5\n')
    assert load({}, str(config), {}).on_instance == "'a b' '{path}'"


# --- what the log says ----------------------------------------------------------------------------


def test_a_log_is_read_line_by_line() -> None:
    def history(*lines: dict[str, Any]) -> History:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return History.of(b'{"settled":\n\0\n[]\n' + data)

    one, two = Level(1, "2024-01-02"), Level(2, "2024-01-03")
    settled = {"settled": "T1", **one._asdict(), "exit": 0}
    level = history(settled).levels[Kind.STUDY]
    assert not one.above(level, "")
    assert two.above(level, "2025")
    assert Level(2, "2024-01-01").above(level, ""), "the clock was set back"
    assert not one.above(None, "2024-01-03")
    failed = history(settled | {"exit": 5})
    assert [one.exit for one in failed.failing(Kind.STUDY)] == [5]
    assert failed.failing(Kind.INSTANCE) == []
    assert one.above(history(settled | {"exit": 5}, {"again": "T"}).levels[Kind.STUDY], "2025")
    ran = {"of": "1/2 T", "ran": "T", "exit": 1}
    assert history(ran).dealt_with == {"1/2 T"}
    assert [one.exit for one in history(ran).failing(Kind.INSTANCE)] == [1]
    assert history(ran, {"again": "T"}).dealt_with == set()
    assert history(ran | {"exit": 0}, {"again": "T"}).dealt_with == {"1/2 T"}
