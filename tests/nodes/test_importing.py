"""Importing the pack is cheap and leaves no trace in the process. Times are measured by benchmarks/importing.py."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.importing import differences, fresh_probe, global_state
from tools.comfyui import ROOT

#: Heavy or optional packages: whoever only opens ComfyUI must not wait for them, or need them.
LAZY = {
    "OpenEXR", "accelerate", "cv2", "diffusers", "h5py", "matplotlib", "peft", "scipy", "skimage", "tensorboard",
    "torchvision", "transformers",
}  # fmt: skip


@pytest.fixture(scope="module")
def probed() -> dict:
    return fresh_probe()


def test_nothing_heavy_is_imported(probed: dict) -> None:
    assert len(probed["nodes"]) > 20, "the pack was not really started"
    tops = {name.split(".")[0] for name in probed["modules"]}
    assert not tops & LAZY
    # ComfyUI has everything that the nodes need at the start; what is new would be ours to answer for.
    assert tops <= {"fe2e_pack"}, sorted(tops)


def test_nothing_global_is_changed(probed: dict) -> None:
    assert probed["changes"] == []
    assert probed["folders"] == ["fe2e"], "its own model folder is all that ComfyUI is told"


def test_a_change_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: each of these is what some pack somewhere does."""
    import comfy.utils

    before = global_state()
    assert differences(before, global_state()) == []
    monkeypatch.setenv("FE2E_TRACE", "1")
    monkeypatch.syspath_prepend("/nonexistent")
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *_: None)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda *_: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
    level, dtype = logging.getLogger().level, torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(level + 1)
        torch.set_default_dtype(torch.float64)
        try:
            found = differences(before, global_state())
        finally:
            logging.getLogger().setLevel(level)
            torch.set_default_dtype(dtype)
    assert {
        "sys.path", "environment: FE2E_TRACE", "warning filters", "logging: root", "torch dtype", "torch cudnn",
        "ComfyUI: comfy.utils.load_torch_file", "ComfyUI: comfy.utils.ProgressBar.update",
    } <= set(found)  # fmt: skip
    assert os.environ["FE2E_TRACE"]


@pytest.mark.parametrize("folder", ["FE2E nodes (ü, 深度)", "nodes", "fe2e.v0.1", "123"])
def test_any_folder_name_will_do(folder: str, tmp_path: Path) -> None:
    """Loaded by path and named after it, as ComfyUI does."""
    path = tmp_path / folder
    path.symlink_to(ROOT, target_is_directory=True)
    name = str(path).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        nodes = asyncio.run(extension.get_node_list())
        assert len({node.GET_SCHEMA().node_id for node in nodes}) > 20
        # ComfyUI's own modules may come along; a room of ours under a bare name may not.
        strays = {key.split(".")[0] for key in set(sys.modules) - before if not key.startswith(name)}
        assert not strays & {"nodes", "fe2e_core", "train", "tools"}
    finally:
        for key in [key for key in sys.modules if key.startswith(name)]:
            del sys.modules[key]
