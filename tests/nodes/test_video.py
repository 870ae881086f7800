"""Stabilize Video Depth: what it does with each of its inputs."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from tests.core import clips
from tests.core.simulation import eq7_label
from tests.harness.inprocess import pack_module, run_node
from train.scenes import HELD_OUT

FRAMES, HEIGHT, WIDTH = 6, 96, 128


@pytest.fixture(scope="module")
def drawn():
    """A walk through a drawn room as Estimate leaves it, with pictures."""
    made = clips.walk(HELD_OUT + 2, FRAMES, HEIGHT, WIDTH, ball=False)
    labels = [eq7_label(d, m)[0].clamp(-1, 1) for d, m in zip(made.depth, made.mask, strict=True)]
    normal = torch.tensor([0.0, 0.0, -1.0]).expand(FRAMES, HEIGHT, WIDTH, 3)
    return {"log_depth": torch.stack(labels), "normal": normal, "mask": made.mask, "image": made.image}


def stabilized(geometry, **inputs):
    return run_node(pack_module("nodes.video").FE2EStabilizeVideo, geometry=geometry, **inputs)


def first_range(geometry, **inputs):
    return float(stabilized(geometry, two_pass=False, **inputs)[0]["log_range"][0])


def test_a_shot_begins_at_the_range_that_is_known_or_else_given(drawn):
    known = {**drawn, "log_range": torch.full((FRAMES,), math.log(4.0))}
    assert first_range(known, far_near_ratio=20.0) == pytest.approx(math.log(4.0))
    assert first_range(drawn, far_near_ratio=20.0) == pytest.approx(math.log(20.0))


def test_what_no_longer_holds_is_not_handed_on(drawn):
    metres = {**drawn, "log_range": torch.full((FRAMES,), math.log(4.0)), "log_near": torch.full((FRAMES,), 0.7), "metric": True}
    out, _, report = stabilized({**metres, "confidence": torch.ones(FRAMES, HEIGHT, WIDTH)})
    assert out["metric"] is False
    assert "metres are not kept" in report
    assert "confidence" not in out
    assert "metres" not in stabilized(drawn)[2]


def test_the_pictures_are_used_unless_they_are_switched_off(drawn):
    """A fade to other pictures in the middle is a cut to them, and nothing to depth."""
    other = {**drawn, "image": torch.cat([drawn["image"][:3], 1 - drawn["image"][3:].flip(2)])}
    other["log_depth"] = torch.cat([drawn["log_depth"][:3], -drawn["log_depth"][3:].flip(2)])
    with_pictures, without = (json.loads(stabilized(other, use_picture=use)[1]) for use in (True, False))
    assert with_pictures["last"]["image"] is not None
    assert without["last"]["image"] is None
    assert [f["cut"] for f in with_pictures["frames"]][3]


@pytest.mark.parametrize(("scale", "cut"), [(0.5, False), (1.5, False), ((1.0, 0.98), False), ((1.0, 0.6), True)])
def test_a_clip_goes_on_at_another_resolution(drawn, scale, cut):
    """But another shape of the picture is another view, and the report says that a shot begins."""
    down, across = scale if isinstance(scale, tuple) else (scale, scale)
    size = (round(HEIGHT * down / 2) * 2, round(WIDTH * across / 2) * 2)
    half = {key: value[:3] for key, value in drawn.items()}
    rest = {
        "log_depth": F.interpolate(drawn["log_depth"][3:, None], size=size, mode="bilinear")[:, 0],
        "normal": torch.tensor([0.0, 0.0, -1.0]).expand(3, *size, 3),
        "mask": F.interpolate(drawn["mask"][3:, None].float(), size=size, mode="nearest")[:, 0] > 0.5,
        "image": F.interpolate(drawn["image"][3:].movedim(-1, 1), size=size, mode="bilinear").movedim(1, -1),
    }
    whole = stabilized(drawn, two_pass=False)[0]
    state = stabilized(half, two_pass=False)[1]
    out, _, report = stabilized(rest, mode="continue a saved clip", state=state, two_pass=False)
    assert ("a new shot begins" in report) == cut
    if not cut:
        torch.testing.assert_close(out["log_range"], whole["log_range"][3:], atol=0.03, rtol=0)
        torch.testing.assert_close(out["log_near"], whole["log_near"][3:], atol=0.03, rtol=0)


def test_shots_are_counted(drawn):
    state = stabilized(drawn)[1]
    other = {key: value.flip(1) for key, value in drawn.items()}
    report = stabilized(other, mode="continue a saved clip", state=state)[2]
    assert "1 shot (" in report.splitlines()[0]
    assert "a new shot begins" in report
