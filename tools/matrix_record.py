"""A pytest plugin (`-p tools.matrix_record --record FILE`): one line of JSON for each test, written when it has ended.

Tests that have passed or were skipped by the lines that are there already are left out, so that a run of hours can be
stopped and gone on with; those that failed are run again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

#: Of a test, or of a file that could not be collected.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
#: How many tests there are; said once in each run.
TOTAL = "total"
#: A test that its file no longer has.
GONE = "gone"


def read(path: Path) -> tuple[dict[str, tuple[str, str]], int]:
    """Node id -> (outcome, reason of a skip or end of a traceback), the last line of each; and how many tests the last run had found.

    A line that was cut off by the end of its process is ignored.
    """
    outcomes: dict[str, tuple[str, str]] = {}
    total = 0
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["outcome"] == TOTAL:
            total = line["tests"]
        elif line["outcome"] == GONE:
            outcomes.pop(line["test"], None)
        else:
            outcomes[line["test"]] = (line["outcome"], line.get("reason", ""))
    return outcomes, total


class Recorder:
    """The plugin itself, for one file of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = read(path)[0]
        self._worst: dict[str, tuple[str, str]] = {}

    def _say(self, **line: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say(test=report.nodeid, outcome=FAILED, reason=str(report.longrepr)[-3000:])
        elif report.skipped:
            self._say(test=report.nodeid, outcome=SKIPPED, reason=_reason(report.longrepr))
        elif self._known.get(report.nodeid, ("",))[0] == FAILED:
            self._say(test=report.nodeid, outcome=PASSED)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._say(outcome=TOTAL, tests=len(items))
        here = {item.nodeid for item in items}
        files = {name.partition("::")[0] for name in here}
        for test in self._known:
            if "::" in test and test not in here and test.partition("::")[0] in files:
                self._say(test=test, outcome=GONE)
        done = [item for item in items if self._known.get(item.nodeid, (FAILED,))[0] != FAILED]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if self._known.get(item.nodeid, (FAILED,))[0] == FAILED]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._worst[report.nodeid] = (FAILED, report.longreprtext[-3000:])
        elif report.skipped:
            self._worst.setdefault(report.nodeid, (SKIPPED, _reason(report.longrepr)))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome, reason = self._worst.pop(nodeid, (PASSED, ""))
        self._say(test=nodeid, outcome=outcome, **({"reason": reason} if reason else {}))


def _reason(longrepr: object) -> str:
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return re.sub(r"^Skipped: ", "", text)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="file of lines, read and added to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.getoption("--record")), "matrix-recorder")
