"""Tiles of a large picture: placed, brought to one scale, merged without seams, sharper than the whole pass."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from benchmarks.tiling import align, log_truth, shifted_plan
from fe2e_core import boundaries, tiling
from tests.harness.fake_prediction import blur, predict_log_depth
from train.scenes import HELD_OUT, render_scene


def smooth_field(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Values within [-0.8, 0.8]."""
    generator = torch.Generator().manual_seed(seed)
    field = F.interpolate(torch.randn(1, 1, 7, 9, generator=generator), (height, width), mode="bicubic")[0, 0]
    return 0.8 * field / field.abs().max()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (96, 128), (112, 512), (3072, 4096), (96, 144)])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
def test_tiles_cover_everything_and_overlap(height, width, overlap):
    plan = tiling.plan_tiles(height, width, 96, 128, overlap)
    covered = torch.zeros(height, width)
    for number, (top, left) in enumerate(plan.corners()):
        assert top % tiling.STEP == left % tiling.STEP == 0
        plan.cut(covered, number).add_(1)
    assert covered.min() >= 1
    for starts, tile in ((plan.tops, plan.tile_height), (plan.lefts, plan.tile_width)):
        for before, after in itertools.pairwise(starts):
            assert before + tile - after >= overlap * tile - 1e-9
    weights = torch.zeros(height, width)
    for number, feather in enumerate(tiling.feathers(plan)):
        assert feather.min() > 0
        plan.cut(weights, number).add_(feather)
    assert weights.isfinite().all()


def test_bad_plans_are_refused():
    with pytest.raises(ValueError, match="height: found 100"):
        tiling.plan_tiles(100, 128, 96, 128, 0.25)
    with pytest.raises(ValueError, match="overlap: found 0.9"):
        tiling.plan_tiles(192, 256, 96, 128, 0.9)


def exact_tiles(plan: tiling.TilePlan, whole: torch.Tensor, seed: int = 1):
    """Tiles that are right up to a scale and a shift, and these."""
    generator = torch.Generator().manual_seed(seed)
    tiles, scales, shifts = [], [], []
    for number in range(len(plan)):
        cut = plan.cut(whole, number)
        scale = float((cut.max() - cut.min()) / 1.8 * (1 + 0.2 * torch.rand((), generator=generator)))
        shift = float((cut.max() + cut.min()) / 2)
        tiles.append((cut - shift) / scale)
        scales.append(scale)
        shifts.append(shift)
    return tiles, torch.tensor(scales), torch.tensor(shifts)


def test_scales_and_shifts_are_found():
    whole = smooth_field(192, 256)
    plan = tiling.plan_tiles(192, 256, 96, 128, 0.25)
    tiles, scales, shifts = exact_tiles(plan, whole)
    solution = tiling.solve_tiles(plan, tiles, whole)
    torch.testing.assert_close(solution.scale.float(), scales, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(solution.shift.float(), shifts, atol=1e-3, rtol=0)
    merged = tiling.merge_log_depth(plan, tiles, solution)
    torch.testing.assert_close(merged, whole, atol=2e-3, rtol=0)


def test_neighbours_hold_what_the_whole_gets_wrong():
    whole = smooth_field(192, 256)
    plan = tiling.plan_tiles(192, 256, 96, 128, 0.25)
    tiles, _, _ = exact_tiles(plan, whole)
    wrong = whole.clone()
    wrong[40:150, 60:160] += 0.6  # an object the whole pass puts at another depth
    merged = tiling.merge_log_depth(plan, tiles, tiling.solve_tiles(plan, tiles, wrong))
    assert (merged - whole).abs().mean() < 0.3 * (wrong - whole).abs().mean()


def test_a_disagreement_does_not_become_a_slope_in_the_overlap():
    """Two tiles that bend apart: the difference is spread over the tiles, not over the strip they share."""
    plan = tiling.plan_tiles(96, 224, 96, 128, 0.25)
    bend = torch.linspace(0, 0.1, 128).expand(96, 128)
    tiles = [bend, bend]  # the right one begins where the left one was 0.075 higher
    solution = tiling.TileSolution(torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    merged = tiling.merge_log_depth(plan, tiles, solution)[48]
    assert merged[120] - merged[104] > -0.02  # blending alone falls by about 0.05 there
    blended = tiling.TileMerger(plan, 1)
    for number, tile in enumerate(tiles):
        blended.add(number, tile[None])
    assert blended.result()[0, 48, 120] - blended.result()[0, 48, 104] < -0.04


def test_a_tile_that_contradicts_the_whole_is_flattened():
    whole = smooth_field(192, 256)
    plan = tiling.plan_tiles(192, 256, 96, 128, 0.25)
    tiles, _, _ = exact_tiles(plan, whole)
    tiles[4] = -tiles[4]
    solution = tiling.solve_tiles(plan, tiles, whole)
    assert (solution.scale >= 0).all()
    assert solution.scale[4] < 1e-3
    assert tiling.merge_log_depth(plan, tiles, solution).isfinite().all()


def test_tiles_of_one_depth_and_cut_off_tiles_are_placed():
    whole = torch.full((192, 256), 0.3)
    plan = tiling.plan_tiles(192, 256, 96, 128, 0.25)
    flat = [torch.zeros(96, 128) for _ in range(len(plan))]
    flat[0] = torch.ones(96, 128)
    merged = tiling.merge_log_depth(plan, flat, tiling.solve_tiles(plan, flat, whole))
    torch.testing.assert_close(merged, whole, atol=1e-3, rtol=0)


def test_wrong_shapes_are_refused():
    plan = tiling.plan_tiles(192, 256, 96, 128, 0.25)
    tiles = [torch.zeros(96, 128)] * len(plan)
    with pytest.raises(ValueError, match="tiles: found 8"):
        tiling.solve_tiles(plan, tiles[:-1], torch.zeros(192, 256))
    with pytest.raises(ValueError, match="tile 0: found"):
        tiling.solve_tiles(plan, [torch.zeros(96, 127), *tiles[1:]], torch.zeros(192, 256))


def test_normals_stay_on_the_sphere():
    plan = tiling.plan_tiles(96, 224, 96, 128, 0.25)
    merger = tiling.NormalMerger(plan)
    left, right = torch.tensor([0.0, 0.6, 0.8]), torch.tensor([0.6, 0.0, 0.8])
    merger.add(0, left.expand(96, 128, 3) * 3)
    merger.add(1, right.expand(96, 128, 3))
    merged = merger.result()
    torch.testing.assert_close(merged.norm(dim=-1), torch.ones(96, 224))
    torch.testing.assert_close(merged[:, :96], left.expand(96, 96, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(merged[:, 128:], right.expand(96, 96, 3), atol=1e-5, rtol=0)
    # Between the two the direction turns steadily, without a step.
    turn = torch.arccos((merged[48, 1:] * merged[48, :-1]).sum(-1).clamp(-1, 1))
    assert turn.max() < 0.1


def pasted(plan, tiles, solution) -> torch.Tensor:
    """Tiles side by side, unblended: what has seams."""
    out = torch.zeros(plan.height, plan.width)
    for number, tile in enumerate(tiles):
        plan.cut(out, number).copy_(tile * solution.scale[number] + solution.shift[number])
    return out


def test_sharper_than_the_whole_pass_and_no_seams():
    """Eight scenes of 512x384 in tiles of 128x96, predictions with the flaws of a network.

    benchmarks/tiling.py does the same with the embedded model on 4096x3072.
    """
    height, width, tile_height, tile_width = 384, 512, 96, 128
    plans = [tiling.plan_tiles(height, width, tile_height, tile_width, 0.25)]
    plans.append(shifted_plan(plans[0]))
    errors = {"whole": 0.0, "tiles": 0.0}
    gradients = {"blended": [0.0, 0.0], "pasted": [0.0, 0.0]}
    for seed in (0, 1, 2, 3, 4, 6, 7, 8):
        scene = render_scene(HELD_OUT + seed, height, width)
        generator = torch.Generator().manual_seed(seed)
        truth = log_truth(scene)
        small = F.interpolate(truth[None, None], (tile_height, tile_width), mode="area")[0, 0]
        small_mask = F.interpolate(scene.mask[None, None].float(), (tile_height, tile_width), mode="area")[0, 0] > 0.5
        whole = predict_log_depth(small, small_mask, generator)
        whole = F.interpolate(whole[None, None], (height, width), mode="bilinear")[0, 0]
        results: dict[str, list[torch.Tensor]] = {"blended": [], "pasted": []}
        for plan in plans:
            tiles = [predict_log_depth(plan.cut(truth, n), plan.cut(scene.mask, n), generator) for n in range(len(plan))]
            solution = tiling.solve_tiles(plan, tiles, whole)
            results["blended"].append(tiling.merge_log_depth(plan, tiles, solution))
            results["pasted"].append(pasted(plan, tiles, solution))
        for name, result in (("whole", whole), ("tiles", results["blended"][0])):
            error = boundaries.boundary_error(align(result, truth, scene.mask), truth, scene.mask, radius=4)
            errors[name] += error
        smooth = scene.mask & ~boundaries.boundary_band(truth, scene.mask, 6)
        for name, (first, second) in results.items():
            seams = boundaries.seams((first, second), tuple(tiling.borders(plan) for plan in plans), smooth)
            gradients[name][0] += seams.at
            gradients[name][1] += seams.off
    excess = {name: at / off - 1 for name, (at, off) in gradients.items()}
    assert errors["tiles"] <= 0.6 * errors["whole"], errors  # measured: 0.54
    assert abs(excess["blended"]) <= 0.05, excess
    assert excess["pasted"] > 0.5, excess  # the measure does see seams


def test_boundary_error_is_about_boundaries():
    truth = torch.zeros(40, 60)
    truth[:, 30:] = 1.0
    mask = torch.ones(40, 60, dtype=torch.bool)
    assert boundaries.boundary_band(truth, mask, 2).sum() == 40 * 6
    soft = blur(truth, 3.0)
    assert boundaries.boundary_error(truth, truth, mask, 4) == 0
    assert boundaries.boundary_error(soft, truth, mask, 4) > 0.15
    far_off = truth.clone()
    far_off[:, :20] += 5
    assert boundaries.boundary_error(far_off, truth, mask, 4) == 0
