"""The record of tools/matrix.py: what has passed is not run again, what failed is; and what its document says of that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.comfyui import ARCHIVES, ROOT
from tools.matrix import ENVIRONMENTS, Outcome, document, environment, kept, summary
from tools.matrix_record import read

TESTS = """
from pathlib import Path
import pytest

def note(name):
    with open(Path(__file__).with_name("ran"), "a") as file:
        file.write(name + " ")

@pytest.fixture
def broken_end():
    yield
    assert Path(__file__).with_name("mended").exists()

def test_good(): note("good")
def test_bad():
    note("bad")
    assert Path(__file__).with_name("mended").exists()
def test_end(broken_end): note("end")
def test_skipped(): pytest.skip("for a reason")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list[str], Path]:
    """(what is recorded, what was executed) of three runs over one record, which knows a test that is no more; something is
    mended before the second, and the record loses half of its last line, as when a process is killed.
    """
    folder = tmp_path_factory.mktemp("tests")
    record = folder / "nodes.jsonl"
    (folder / "test_some.py").write_text(TESTS)
    record.write_text('{"test": "test_some.py::test_of_a_former_name", "outcome": "passed"}\n')
    (folder / "test_unreadable.py").write_text("import nothing_of_that_name")
    recorded, executed = [], []
    for number in range(3):
        (folder / "ran").write_text("")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.matrix_record", f"--record={record}",
                   f"--rootdir={folder}", "-c", "/dev/null", "--continue-on-collection-errors", str(folder)]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 1, 5), done.stdout + done.stderr
        recorded.append(read(record))
        executed.append((folder / "ran").read_text())
        if number == 0:
            (folder / "mended").touch()
            (folder / "test_unreadable.py").write_text("def test_now(): pass")
            with open(record, "a") as file:
                file.write('{"test": "test_some.py::test_g')
                file.write("\n")
    return recorded, executed, record


def outcomes(recorded: tuple[dict, int]) -> dict[str, str]:
    return {test: outcome for test, (outcome, _) in recorded[0].items()}


def test_each_outcome_is_recorded(runs) -> None:
    assert outcomes(runs[0][0]) == {
        "test_some.py::test_good": "passed", "test_some.py::test_bad": "failed", "test_some.py::test_end": "failed",
        "test_some.py::test_skipped": "skipped", "test_unreadable.py": "failed",
    }  # fmt: skip
    assert runs[0][0][0]["test_some.py::test_skipped"][1] == "for a reason"
    assert runs[0][0][1] == 4


def test_only_what_failed_is_run_again(runs) -> None:
    recorded, executed, _ = runs
    assert executed == ["good bad end ", "bad end ", ""]
    assert set(outcomes(recorded[1]).values()) == {"passed", "skipped"}
    assert outcomes(recorded[1])["test_unreadable.py::test_now"] == "passed"
    assert recorded[1] == recorded[2]


def test_the_summary_counts_tests(runs, tmp_path: Path) -> None:
    folder = tmp_path / "0.16.3-py3.11"
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.9", "torch": "2.11.0", "frontend": "1.2.3"}))
    (folder / "nodes.jsonl").write_bytes(runs[2].read_bytes())
    found = summary(folder, "nodes", *read(folder / "nodes.jsonl"))
    assert (found.comfyui, found.python, found.minor) == ("0.16.3", "3.11.9", "3.11")
    assert (found.passed, found.failed, found.skipped, found.total, found.left) == (4, (), {"for a reason": 1}, 5, 0)


def test_the_document_hides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tools.matrix.CACHE", tmp_path)
    (tmp_path / "0.16.3").mkdir()
    (tmp_path / "0.16.3" / "requirements.txt").write_text("comfyui-frontend-package==1.1.1\n")

    def outcome(comfyui: str, python: str, passed: int, failed: tuple[str, ...] = ()) -> Outcome:
        return Outcome(comfyui, python, "2.11.0", "1.2.3", "nodes", 10, passed, failed, {"no GPU": 1}, "2026-01-01")

    older = document([outcome("0.16.3", "3.11.9", 9)], [])
    assert "| 0.16.3 | 3.11.9 | 2.11.0 | 1.2.3 * |" in older, "packages of another ComfyUI are marked"
    assert "\n- Python 3.12\n" in older, "here, and not run"
    text = document([outcome("0.30.0", "3.11.9", 9), outcome("0.30.0", "3.12.1", 4, ("tests/nodes/test_x.py::test_y",))], ["3.14"])
    assert "| 0.30.0 | 3.11.9 | 2.11.0 | 1.2.3 | nodes | 9 | 0 | 1 | 0 | 2026-01-01 |" in text
    assert "| 0.30.0 | 3.12.1 | 2.11.0 | 1.2.3 | nodes | 4 | 1 | 1 | 4 | 2026-01-01 |" in text
    assert "ComfyUI 0.30.0, Python 3.12.1: `tests/nodes/test_x.py::test_y`" in text
    unrun = text.partition("## Not run")[2]
    for line in ("4 of the 10 tests of nodes with ComfyUI 0.30.0 and Python 3.12", "nodes with ComfyUI 0.16.3 and Python 3.11",
                 "browser with ComfyUI 0.30.0 and Python 3.11", "Python 3.14"):  # fmt: skip
        assert line in unrun
    assert "no GPU: 0.30.0 (Python 3.11.9): 1, 0.30.0 (Python 3.12.1): 1" in text


def test_an_environment_that_was_taken_away_is_made_again_and_its_records_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tools.matrix.ENVIRONMENTS", tmp_path)
    folder = tmp_path / "0.30.0-py3.99"
    (folder / "include").mkdir(parents=True)
    (folder / "lib64").symlink_to("include")
    (folder / "environment.json").write_text("{}")
    (folder / "nodes.jsonl").write_text("kept")
    environment("0.30.0", "3.99", Path(sys.executable), present=True)
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", "nodes.jsonl"]
    assert (folder / "nodes.jsonl").read_text() == "kept"
    assert "torch" in (folder / "environment.json").read_text()


def test_nothing_kept_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ENVIRONMENTS.is_relative_to(ROOT)
    monkeypatch.setattr("tools.matrix.ENVIRONMENTS", tmp_path)
    assert kept() == []


def test_what_is_promised_was_tested() -> None:
    """`requires-comfyui` names the oldest ComfyUI of the document, and no test of a node failed with any of them."""
    oldest = min(ARCHIVES, key=lambda version: [int(part) for part in version.split(".")])
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"
    text = (ROOT / "docs" / "compatibility.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| \S+ \| [^|]+ \| nodes \| (\d+) \| (\d+) \| \d+ \| (\d+) \|", text, re.MULTILINE)
    assert {comfyui for comfyui, *_ in rows} == set(ARCHIVES)
    unrun = text.partition("## Not run")[2]
    for comfyui, python, passed, failed, left in rows:
        assert int(passed) > 0 and int(failed) == 0, f"ComfyUI {comfyui}, Python {python}"
        minor = python.rpartition(".")[0]
        assert int(left) == 0 or re.search(rf"{left} of the \d+ tests of nodes with ComfyUI {re.escape(comfyui)} and Python {minor}", unrun)
