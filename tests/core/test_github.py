"""The files that GitHub reads: they parse, and agree with the Makefile and pyproject.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflow(name: str) -> dict[Any, Any]:
    content = read(GITHUB / "workflows" / f"{name}.yml")
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in content.items()}


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_jobs_are_the_rooms_of_the_makefile() -> None:
    rooms = re.search(r"^ROOMS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    job = workflow("tests")["jobs"]["test"]
    assert job["strategy"]["matrix"]["room"] == rooms
    assert commands(job) == ["make test-${{ matrix.room }}"]
    assert job["env"]["FE2E_REQUIRE_BROWSER"] == "1"
    for extra in job["strategy"]["matrix"]["include"]:
        assert extra["room"] in rooms


def test_the_oldest_python_is_tested() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert oldest in workflow("tests")["jobs"]["test"]["strategy"]["matrix"]["python"]


def test_every_change_is_tested_and_linted() -> None:
    content = workflow("tests")
    assert {"push", "pull_request", "workflow_call"} <= set(content["on"])
    assert "ruff check ." in commands(content["jobs"]["lint"])
    assert content["permissions"] == {"contents": "read"}


def test_only_a_tag_of_the_owner_publishes_and_only_after_the_tests() -> None:
    content = workflow("publish")
    assert content["on"] == {"push": {"tags": ["v*.*.*"]}}
    job = content["jobs"]["publish"]
    assert content["jobs"][job["needs"]]["uses"] == "./.github/workflows/tests.yml"
    owner = PROJECT["project"]["urls"]["Repository"].split("/")[-2]
    assert job["if"] == f"github.repository_owner == '{owner}'"
    [publish] = [
        step for step in job["steps"] if step.get("uses", "").startswith("Comfy-Org/publish-node-action@")
    ]
    assert publish["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    assert job["steps"][-1] is publish, "nothing is published before everything was checked"


@pytest.mark.parametrize("tag", ["v{version}", "{version}", "v9.9.9"])
def test_a_tag_that_is_not_the_version_stops_publishing(tag: str) -> None:
    """The check is the script in the workflow, run here."""
    [script] = [text for text in commands(workflow("publish")["jobs"]["publish"]) if "<<'EOF'" in text]
    source = re.search(r"<<'EOF'\n(.*?)\nEOF", script, re.DOTALL).group(1)
    environment = {**os.environ, "GITHUB_REF_NAME": tag.format(version=PROJECT["project"]["version"])}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if tag == "v{version}":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0 and "the tag is" in done.stderr


def test_actions_are_pinned_to_a_version() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        for uses in re.findall(r"uses: (\S+)", path.read_text()):
            assert uses.startswith("./") or re.search(r"@v\d+$", uses), (path.name, uses)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form(path: Path) -> None:
    """What GitHub demands of a form, else it shows none at all."""
    form = read(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        attributes = field["attributes"]
        assert attributes.get("value") if field["type"] == "markdown" else attributes["label"]
        if field["type"] in {"dropdown", "checkboxes"}:
            assert attributes["options"]


def test_there_are_forms_and_a_private_way() -> None:
    assert {"bug", "idea"} <= {path.stem for path in FORMS}
    links = [link["url"] for link in read(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]]
    advisory = PROJECT["project"]["urls"]["Repository"] + "/security/advisories/new"
    assert advisory in links
    assert advisory in (ROOT / "SECURITY.md").read_text()
