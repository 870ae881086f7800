"""What a checkpoint says of labels that are not logarithms, and how depth of each scheme is aligned."""

from __future__ import annotations

import json

import pytest
import torch

from fe2e_core.checkpoint import NO_NORMALS, OTHER_LABELS, CheckpointInfo, _info
from fe2e_core.metrics import align_disparity, align_linear, align_log, align_sqrt
from fe2e_core.provenance import provenance
from fe2e_core.quantization import SCHEMES, encode, percentile_range


def lora(scheme: str, joint: bool = True) -> dict[str, str]:
    """A LoRA's metadata, as `train lora` writes them."""
    objective = {"quantization": scheme, "joint": joint, "start": "zero"}
    return {"fe2e.config": json.dumps({"base": {}, "objective": objective}), "ss_resolution": "(64, 48)"}


def with_lora(info: CheckpointInfo, scheme: str, joint: bool = True) -> CheckpointInfo:
    return provenance(lora(scheme, joint), "LoRA").of_checkpoint(info)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_notice_names_labels_that_are_no_logarithms(scheme):
    info = with_lora(CheckpointInfo("base"), scheme)
    assert info.quantization == scheme
    if scheme == "log":
        assert info.notice == ""
    else:
        assert "decoded as log-depth" in info.notice
    assert ("near and far are swapped" in info.notice) == (scheme == "inverse")
    assert info.joint


def test_a_further_lora_changes_what_is_said_and_nothing_else():
    own = CheckpointInfo("base", notice="a demonstration; not for measuring")
    first = with_lora(own, "uniform", joint=False)
    assert first.notice == f"{own.notice}; {NO_NORMALS}; {OTHER_LABELS['uniform']}"
    assert not first.joint
    assert with_lora(first, "inverse").notice == f"{own.notice}; {OTHER_LABELS['inverse']}"
    assert with_lora(first, "log").notice == own.notice


def test_a_file_that_was_packed_before_says_it_as_well():
    metadata = {"name": "older", "quantization": "inverse", "notice": NO_NORMALS}
    info = _info(metadata, "checkpoint")
    assert info.notice == f"{NO_NORMALS}; {OTHER_LABELS['inverse']}"
    assert not info.joint
    assert _info({**metadata, "notice": info.notice}, "checkpoint") == info
    with pytest.raises(ValueError, match="'quantization' is 'cubic'; expected one of log, inverse, uniform, sqrt"):
        _info({**metadata, "quantization": "cubic"}, "checkpoint")


ALIGN = {"log": align_log, "uniform": align_linear, "inverse": align_disparity, "sqrt": align_sqrt}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_perfect_label_is_aligned_to_the_depth_it_was_made_of(scheme):
    depth = torch.linspace(2, 60, 400).view(20, 20)
    label = encode(depth, percentile_range(depth, scheme=scheme, low=0, high=100), bf16=None).double()
    mask = label > -1  # where log and disparity can be fitted

    def error(name: str) -> float:
        given = label if name == "log" else (label + 1) / 2
        return float(((ALIGN[name](given, depth, mask).depth - depth).abs() / depth)[mask].mean())

    assert error(scheme) < 1e-5
    assert min(error(other) for other in SCHEMES if other != scheme) > 0.02


def test_aligned_roots_are_clipped():
    root = torch.tensor([0.0, 0.5, 1.0])
    found = align_sqrt(root, torch.tensor([4.0, 9.0, 16.0]), near=5.0, far=10.0)
    assert (found.scale, found.shift) == (2.0, 2.0)
    assert found.depth.tolist() == [5.0, 9.0, 10.0]
    below = align_sqrt(torch.tensor([-9.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 9.0]), torch.tensor([False, True, True]))
    assert float(below.depth[0]) == 0.0
