"""Every command in the README is typed, in its order, by somebody who has a ComfyUI and never saw the pack: as it stands, or
as a rule says; and this leads to a depth map in a running ComfyUI. Nothing here reaches the network (tests/harness/stranger.py).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import documents, workflows
from tests.harness.pictures import write_example
from tests.harness.stranger import OURS_ALONE, Stranger
from tools.comfyui import ROOT
from tools.server import ComfyServer

README = ROOT / "README.md"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Commands that are not typed as they stand. pattern: what the whole command looks like. instead: what is typed in its
    place (a template of re.Match.expand), or "" for nothing. why: the reason, which docs/reliability.md lists.
    """

    pattern: str
    instead: str
    why: str


RULES = (
    Rule(r"make test", "make --dry-run test", "is the tests themselves"),
    Rule(r"python -m train fetch (?P<rest>.*)", r"python -m train fetch \g<rest> --dry-run",
         "26 GB; tests/train/test_fetch.py fetches small files of these names from a local mirror"),
    Rule(r"python -m train (?P<verb>nano|online)(?P<rest>.*)", r"python -m train \g<verb>\g<rest> --dry-run",
         "trains for an hour; tests/train/test_training.py trains for seconds"),
    Rule(r"python -m train (?P<verb>pack|evaluate|lora|inspect|convert|memory|curves|predict model)\b.*", "",
         "needs the released weights, benchmarks or data sets; its options are read by its own parser here, tests/train runs it on small files"),
    Rule(r"(torchrun|accelerate launch) .*", "", "tests/train/test_predict.py divides the work among two processes"),
    Rule(r"(?P<program>comfy( --\S+)*( [a-z-]+){1,2}).*", r"\g<program> --help",
         "asks the registry or ComfyUI-Manager; the archive that they would unpack is made, unpacked and run by tests/workflows/test_published_pack.py"),
)  # fmt: skip


def rule_of(command: str) -> Rule | None:
    """The first rule that the whole command fits."""
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command)), None)


def typed(command: str) -> str:
    """What is typed for one command."""
    rule = rule_of(command)
    return command if rule is None else re.fullmatch(rule.pattern, command).expand(rule.instead)


def readme() -> list[documents.Block]:
    return [block for block in documents.blocks(README) if block.commands]


def outside_the_installation() -> dict[str, str]:
    """Command -> where the README says it first."""
    found: dict[str, str] = {}
    for block in readme():
        for command in () if is_installation(block) else block.commands:
            if typed(command):
                found.setdefault(command, block.place)
    return found


def is_installation(block: documents.Block) -> bool:
    return any(command.startswith("git clone") for command in block.commands)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    return Stranger(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def comfyui(stranger: Stranger) -> ComfyServer:
    """Their ComfyUI, not started."""
    server = ComfyServer(stranger.home / "server", pack=None, python=stranger.python)
    (stranger.home / "ComfyUI").symlink_to(server.base, target_is_directory=True)
    return server


@pytest.fixture(scope="module")
def installed(stranger: Stranger, comfyui: ComfyServer) -> Path:
    """The pack's folder, after the README's installation by hand, line by line as it stands."""
    [block] = [block for block in readme() if is_installation(block)]
    missing = stranger.type(f'python -c "import {OURS_ALONE[0]}"', stranger.home)
    assert missing.returncode != 0, "their environment has it already, the installation would show nothing"
    done = stranger.type("\n".join(map(typed, block.commands)), stranger.home)
    assert done.returncode == 0, f"{block.place}\n{done.stdout}"
    assert f"Successfully installed {OURS_ALONE[0]}-" in done.stdout
    [cloned] = comfyui.custom_nodes.iterdir()
    return cloned


@pytest.fixture(scope="module")
def checkout(stranger: Stranger, installed: Path) -> Path:
    """The pack's folder, where everything else is typed, with what `make setup` would have made and with what the README takes
    for the reader's own: `photos/` and `photo.jpg`.
    """
    stranger.set_up(installed)
    (installed / "photos").mkdir()
    Image.open(write_example(installed / "photos")).convert("RGB").save(installed / "photo.jpg")
    return installed


def test_from_the_readme_to_a_depth_map(comfyui: ComfyServer, installed: Path) -> None:
    """Their ComfyUI is started, and the quick start is run from the folder that was cloned."""
    with comfyui:
        write_example(comfyui.input)
        assert "IMPORT FAILED" not in comfyui.log
        assert set(comfyui.get("/workflow_templates")[installed.name]) >= {"quick_start"}
        prompt = workflows.read_api("quick_start")
        result = comfyui.run(prompt)
        [depth] = [
            path
            for key, node in prompt.items()
            if node["class_type"] == "SaveImage" and node["inputs"]["filename_prefix"].endswith("depth")
            for path in result.files(key)
        ]
    with Image.open(depth) as picture, Image.open(comfyui.input / "example.png") as example:
        assert picture.size == example.size
        assert np.ptp(np.asarray(picture.convert("L")).astype(int)) > 200


@pytest.mark.parametrize("command", outside_the_installation())
def test_command_of_the_readme_works(command: str, stranger: Stranger, checkout: Path) -> None:
    done = stranger.type(typed(command), checkout)
    assert done.returncode == 0, f"{outside_the_installation()[command]}: {typed(command)}\n{done.stdout}"


def test_what_the_readme_promises_of_them_is_there(stranger: Stranger, checkout: Path) -> None:
    """After the commands above: the files of the demo, and of the photographs."""
    for case in ("photo", "scene"):
        assert {"depth.png", "normal.png", "side_by_side.png", "geometry.npz"} <= {p.name for p in (checkout / "out/demo" / case).iterdir()}
    suffixes = {path.suffix for path in (checkout / "out/photos").rglob("*.*")}
    assert {".npz", ".png"} <= suffixes


def test_python_in_the_readme_runs(stranger: Stranger, checkout: Path) -> None:
    found = [block for block in documents.blocks(README) if block.text.startswith(("import ", "from "))]
    assert found
    for block in found:
        assert ast.parse(block.text, block.place).body
        done = stranger.type(f"python -c {shlex.quote(block.text)}", checkout)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}"


def test_the_exceptions_are_listed_and_needed() -> None:
    listed = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    commands = [command for block in readme() for command in block.commands]
    assert {"make demo", "pip install -r fe2e-nodes/requirements.txt"} <= {c for c in commands if rule_of(c) is None}
    for command in commands:
        rule = rule_of(command)
        assert rule is None or rule.why in listed, f"docs/reliability.md does not say why '{command}' is not typed: {rule.why}"
    assert not [block.place for block in readme() if block.is_mixed], "commands and other lines in one block cannot be pasted"


def all_commands() -> Iterator[tuple[str, str]]:
    for path in documents.documents():
        for block in documents.blocks(path):
            yield from ((block.place, command) for command in block.commands)


def test_every_document_names_commands_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goals of make, modules of Python and options of `python -m train`, in all documents; nothing is run."""
    from train import __main__ as train

    monkeypatch.setattr(train, "VERBS", [dataclasses.replace(verb, run=lambda _: 0) for verb in train.VERBS])
    makefile = (ROOT / "Makefile").read_text()
    goals = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) | {f"test-{room}" for room in ("core", "train", "nodes", "workflows")}
    seen = 0
    for place, command in all_commands():
        words = shlex.split(re.sub(r"\[[^\]]*\]", "", command))
        if words[0] == "make":
            wrong = [word for word in words[1:] if "=" not in word and not word.startswith("-") and word not in goals]
            assert not wrong, f"{place}: make has no goal {wrong}"
        elif words[:2] == ["python", "-m"] and words[2] == "train":
            if not {"...", "VERB"} & set(words) and "<" not in command and len(words) > 4:
                try:
                    train.main(words[3:])
                except SystemExit as error:
                    assert error.code == 0, f"{place}: {command}"
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"{place}: there is no module {words[2]}"
        else:
            continue
        seen += 1
    assert seen > 20
