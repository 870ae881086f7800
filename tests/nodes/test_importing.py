"""Importing the pack is cheap and leaves no trace in the process. Times are measured by benchmarks/importing.py."""

from __future__ import annotations

import logging
import os
import warnings

import pytest
import torch

from benchmarks.importing import differences, fresh_probe, global_state

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
