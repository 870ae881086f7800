"""Refinement against ray-cast scenes with a smooth error and noise at edges; and that it leaves good depth
alone.
"""

from __future__ import annotations

import pytest
import torch

from fe2e_core.geometry import intrinsics_from_fov
from fe2e_core.grid_solver import GridSystem, solve
from fe2e_core.refinement import RefinementOptions, refine_depth
from tests.core.simulation import bilateral, eq7_label, noisy_normals, plane, smooth_noise, spoiled_depth
from train.scenes import HELD_OUT, render_scene

HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, HEIGHT, WIDTH) for seed in range(HELD_OUT + 30, HELD_OUT + 36)]


def spoiled(scene, seed):
    return spoiled_depth(scene.depth, scene.mask, seed)


def error(depth, scene):
    """Mean absolute error of ln depth up to one scale."""
    miss = (torch.log(depth) - torch.log(scene.depth))[scene.mask]
    return float((miss - miss.median()).abs().mean())


def refined(depth, scene, normal=None):
    normal = scene.normal if normal is None else normal
    return refine_depth(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_errors_fall_by_a_third_and_more(scenes, noise):
    ratios = []
    for number, scene in enumerate(scenes):
        depth = spoiled(scene, number)
        normal = noisy_normals(scene.normal, noise, seed=number) if noise else None
        ratios.append(error(refined(depth, scene, normal), scene) / error(depth, scene))
    ratios = torch.tensor(ratios)
    assert ratios.median() < 0.6, ratios
    assert ratios.max() < 0.8, ratios  # streets of grazing ground and far houses are among them


def test_it_beats_a_bilateral_filter_tuned_on_the_answer(scenes):
    ours, theirs = [], []
    for number, scene in enumerate(scenes[:3]):
        depth = spoiled(scene, number)
        ours.append(error(refined(depth, scene), scene))
        _, log_range = eq7_label(scene.depth, scene.mask)
        logs = torch.log(depth.clamp_min(1e-3))
        theirs.append(
            min(
                error(bilateral(logs, scene.mask, space, tone * log_range), scene)
                for space in (1.0, 2.0, 4.0)
                for tone in (0.02, 0.06, 0.15)
            )
        )
    assert sum(ours) < 0.75 * sum(theirs), (ours, theirs)


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_good_depth_is_left_alone(scenes, noise):
    for number, scene in enumerate(scenes):
        normal = noisy_normals(scene.normal, noise, seed=number) if noise else None
        assert error(refined(scene.depth, scene, normal), scene) < (0.006 if noise else 0.001)


def test_a_step_between_parallel_faces_stays():
    depth, normal, mask = plane((0.0, 0.0, -1.0), 60.0, 96, 128)
    depth[30:60, 40:80] = 2.0  # a card before the wall at 3
    k = intrinsics_from_fov(60.0, 96, 128)
    out = refine_depth(depth[None], normal[None], mask[None], k)[0]
    torch.testing.assert_close(out, depth, rtol=0.01, atol=0)


def test_what_stands_before_a_wall_moves_along_with_it():
    """The normals say nothing about how far a card is from the wall, so the smooth error must go from both alike."""
    truth, normal, mask = plane((0.0, 0.0, -1.0), 60.0, 96, 128)
    card = torch.zeros_like(mask)
    card[30:66, 48:80] = True
    truth = torch.where(card, 2.0, truth)
    error = 0.06 * torch.sin(torch.arange(128) / 128 * 3 * torch.pi).expand(96, 128)
    out = refine_depth(
        (truth * error.exp())[None], normal[None], mask[None], intrinsics_from_fov(60.0, 96, 128)
    )[0]
    miss = torch.log(out / truth)
    miss = miss - miss.median()
    assert abs(float(miss[card].mean() - miss[~card].mean())) < 0.035, "the card stayed behind"
    assert float(miss.abs().mean()) < 0.4 * float((error - error.median()).abs().mean())


def test_ground_that_is_seen_at_a_grazing_angle_is_refined_too():
    truth, normal, mask = plane((0.0, -1.0, -0.15), 60.0, 96, 128)
    truth = torch.where(mask, truth, torch.ones_like(truth))
    generator = torch.Generator().manual_seed(1)
    error = 0.05 * smooth_noise(96, 128, 25, generator)[..., 0]
    k = intrinsics_from_fov(60.0, 96, 128)
    out = refine_depth((truth * error.exp())[None], normal[None], mask[None], k)[0]
    before, after = ((x - x.median()).abs().mean() for x in (error[mask], torch.log(out / truth)[mask]))
    assert after < 0.85 * before, (before, after)


def test_doubtful_depth_gives_way_to_the_normals():
    """A hill that only the depth has, too wide to be noise and too low for a jump: where its pixels are trusted it
    mostly stays, and where they are not the wall's normals flatten it.
    """
    truth, normal, mask = plane((0.3, -0.2, -0.9), 60.0, 96, 128)
    k = intrinsics_from_fov(60.0, 96, 128)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    hill = 0.05 * torch.exp(-((x - 64) ** 2 + (y - 48) ** 2) / (2 * 14**2))
    spot = hill > 0.001
    given = (truth * hill.exp())[None]

    def left(confidence):
        out = refine_depth(given, normal[None], mask[None], k, confidence)[0]
        miss = torch.log(out / truth)
        return float((miss - miss.median())[spot].abs().mean())

    trusted, doubted, half = (left(torch.where(spot, c, 1.0)[None]) for c in (1.0, 0.0, 0.2))
    assert trusted == left(None)
    assert doubted < 0.15 * trusted, (doubted, trusted)
    assert doubted < half < trusted


def test_a_single_wrong_pixel_is_pulled_back():
    depth, normal, mask = plane((0.3, -0.2, -0.9), 60.0, 96, 128)
    k = intrinsics_from_fov(60.0, 96, 128)
    broken = depth.clone()
    broken[50, 60] *= 1.2
    out = refine_depth(broken[None], normal[None], mask[None], k)[0]
    assert abs(float(out[50, 60] / depth[50, 60]) - 1) < 0.02


def test_masked_pixels_neither_change_nor_count(scenes):
    scene = scenes[0]
    depth = scene.depth.clone()
    mask = scene.mask.clone()
    mask[100:150, 100:180] = False
    depth[100:150, 100:180] = 0.0
    out = refine_depth(depth[None], scene.normal[None], mask[None], scene.intrinsics)[0]
    assert (out[100:150, 100:180] == 0).all()
    assert torch.isfinite(out).all()
    miss = (torch.log(out / scene.depth))[mask]
    assert (miss - miss.median()).abs().mean() < 0.01


def test_solver_solves():
    """Against a dense solution, with a cut grid of odd sizes."""
    generator = torch.Generator().manual_seed(0)
    across, down = torch.rand(1, 9, 12, generator=generator), torch.rand(1, 8, 13, generator=generator)
    across[:, :, 5] = 1e-9
    system = GridSystem.build(across, down, 1e-3 * torch.rand(1, 9, 13, generator=generator))
    basis = torch.eye(9 * 13).reshape(-1, 9, 13)
    matrix = torch.stack([system.apply(e[None])[0].flatten() for e in basis])
    torch.testing.assert_close(matrix, matrix.T)
    rhs = torch.randn(1, 9, 13, generator=generator)
    exact = torch.linalg.solve(matrix.double(), rhs.flatten().double()).reshape(9, 13)
    found = solve(system, rhs, torch.zeros_like(rhs), iterations=60, tolerance=1e-7)[0]
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-3


def test_options_are_checked():
    with pytest.raises(ValueError, match="reach"):
        RefinementOptions(reach=0)
