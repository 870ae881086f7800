"""The pages with figures: every section names the command that wrote it, and if it was measured, day, machine and versions."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, report

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"<!-- begin (\w+) -->\n(## .*?)\n<!-- end \1 -->", re.DOTALL)
COMMAND = re.compile(r"`python -m benchmarks\.(\w+)([^`]*)`(?: on (\d{4}-\d\d-\d\d)\. (.+))?")
NOT_MEASURED = ("not measured on a GPU", "--counted", "benchmarks.macs")


def sections() -> list[tuple[str, str]]:
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [(f"{page.name}, {key}", body) for page in pages for key, body in SECTION.findall(page.read_text("utf-8"))]


def complaints(body: str) -> list[str]:
    """What a section lacks."""
    last = body.rstrip().splitlines()[-1]
    command = COMMAND.fullmatch(last)
    if command is None:
        return [f"ends with {last[:80]!r} instead of its command"]
    module, options, day, where = command.groups()
    source = ROOT / "benchmarks" / f"{module}.py"
    if not source.is_file():
        return [f"there is no benchmarks/{module}.py"]
    # options of a group of commands are declared in benchmarks/scenes.py
    declared = source.read_text("utf-8") + (ROOT / "benchmarks" / "scenes.py").read_text("utf-8")
    found = [f"{module} knows no {option}" for option in re.findall(r"--[\w-]+", options) if f'"{option}"' not in declared]
    if any(text in body for text in NOT_MEASURED):
        return found
    if day is None:
        return [*found, "has no day and no machine"]
    parts = {r"\d+ cores": "processor", r"GiB": "memory", r"Python 3\.\d+": "Python", r"torch \d": "torch"}
    return found + [f"does not say its {name}" for pattern, name in parts.items() if not re.search(pattern, where)]


def test_every_section_can_be_repeated() -> None:
    found = {name: complaints(body) for name, body in sections()}
    assert {"benchmarks.md, operations", "benchmarks.md, cost", "benchmarks.md, cpu"} <= set(found)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(("end", "complaint"), [
    ("some text", "instead of its command"),
    ("`python -m benchmarks.nothing --write`", "no benchmarks/nothing.py"),
    ("`python -m benchmarks.cost --write`", "no day"),
    ("`python -m benchmarks.cost --growth` on 2026-01-02. CPU, 2 cores, 4 GiB, Python 3.11, torch 2", "no --growth"),
    ("`python -m benchmarks.cost` on 2026-01-02. CPU, 2 cores, 4 GiB, Python 3.11", "its torch"),
])  # fmt: skip
def test_what_is_missing_is_noticed(end: str, complaint: str) -> None:
    [found] = complaints(f"## Title\n\n| a | 1 |\n\n{end}")
    assert complaint in found


def test_pages_are_linked_to_what_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert "://" in target or target.startswith("mailto:") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A copy of docs/benchmarks.md that the benchmarks write instead."""
    copy = tmp_path / "docs" / "benchmarks.md"
    copy.parent.mkdir()
    copy.write_bytes(report.DOCUMENT.read_bytes())
    monkeypatch.setattr(report, "DOCUMENT", copy)
    return copy


def run_gpu(monkeypatch, *arguments: str) -> None:
    """The command on a machine without a card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


def test_without_a_gpu_the_figures_of_one_stay(page, monkeypatch, caplog) -> None:
    """`make bench` on any machine."""
    before = page.read_text("utf-8")
    with caplog.at_level(logging.INFO):
        run_gpu(monkeypatch, "--write")
    assert page.read_text("utf-8") == before
    assert "figures in docs/benchmarks.md stay" in caplog.text


def test_without_a_gpu_and_figures_the_page_says_so(page, monkeypatch) -> None:
    page.unlink()
    for _ in range(2):  # what was not measured may be written again
        run_gpu(monkeypatch, "--write")
        assert page.read_text("utf-8").count(gpu.NOT_MEASURED) == 4 * len(gpu.VARIANTS)


def test_the_gpu_sections_are_those_of_the_records(page, monkeypatch) -> None:
    """Also the introduction, which comes from the program."""
    before = page.read_text("utf-8")
    assert "`python -m benchmarks.gpu --from-json " in before
    page.write_text(re.sub(r"<!-- begin gpu -->.*<!-- end gpu2 -->\n", "", before, flags=re.DOTALL), "utf-8")
    run_gpu(monkeypatch, "--from-json", *(str(ROOT / path) for path in gpu.RECORDS), "--write")
    assert page.read_text("utf-8") == before
