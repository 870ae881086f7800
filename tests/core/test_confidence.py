"""Damage of four kinds, injected into ray-cast scenes, has to be where the confidence is low."""

from __future__ import annotations

import pytest
import torch

from fe2e_core.confidence import agreement, disagreement
from tests.core.simulation import damage, eq7_label, noisy_normals, plane, roc_area
from train.scenes import HELD_OUT, render_scene

HEIGHT, WIDTH = 384, 512


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, HEIGHT, WIDTH) for seed in range(HELD_OUT + 20, HELD_OUT + 23)]


def test_roc_area_by_hand():
    positive = torch.tensor([True, False, True, False])
    assert roc_area(torch.tensor([4.0, 1.0, 3.0, 2.0]), positive) == 1.0
    assert roc_area(torch.tensor([1.0, 1.0, 1.0, 1.0]), positive) == 0.5
    assert roc_area(torch.tensor([3.0, 2.0, 1.0, 0.0]), positive) == 0.75


@pytest.mark.parametrize(
    ("kind", "median", "least"),
    [
        ("shift", 0.975, 0.92),
        # Where a scene's depth hardly varies, a tilt can lie below the 5 degrees of noise on the normals.
        ("tilt", 0.95, 0.8),
        ("edges", 0.985, 0.96),
        # its crests agree with the normals, so this takes what surrounds a pixel
        ("relief", 0.99, 0.96),
    ],
)
def test_damage_is_found(scenes, kind, median, least):
    areas = []
    for number, scene in enumerate(scenes):
        log = torch.log(scene.depth.clamp_min(1e-3))
        _, log_range = eq7_label(scene.depth, scene.mask)
        broken, where = damage(kind, log, scene.mask, log_range, seed=number)
        if int(where.sum()) < 50:
            continue
        normal = noisy_normals(scene.normal, 5.0, seed=number)
        label, log_range = eq7_label(broken.exp(), scene.mask, bf16=True)
        depth = torch.exp(label * log_range / 2)
        score = agreement(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]
        areas.append(roc_area(-score[scene.mask], where[scene.mask]))
    areas = torch.tensor(areas)
    assert areas.median() > median, areas
    assert areas.min() > least, areas


def test_what_agrees_is_trusted(scenes):
    for scene in scenes:
        score = agreement(scene.depth[None], scene.normal[None], scene.mask[None], scene.intrinsics[None])[0]
        assert score[scene.mask].median() > 0.95
        assert (score[scene.mask] < 0.5).float().mean() < 0.2
        assert (score[~scene.mask] == 0).all()


def test_the_angle_is_in_degrees():
    depth, normal, mask = plane((0.0, 0.0, -1.0), 60.0, 64, 96)
    from fe2e_core.geometry import intrinsics_from_fov

    turned = torch.nn.functional.normalize(
        normal + torch.tensor([0.57735, 0.0, 0.0]), dim=-1
    )  # by 30 degrees
    angle = disagreement(depth[None], turned[None], mask[None], intrinsics_from_fov(60.0, 64, 96))
    torch.testing.assert_close(angle, torch.full_like(angle, 30.0), atol=0.1, rtol=0)


def test_an_edge_in_the_picture_explains_a_jump():
    """A card in front of a wall: same normals. Where the picture shows it, it is no error."""
    from fe2e_core.geometry import intrinsics_from_fov

    depth, normal, mask = plane((0.0, 0.0, -1.0), 60.0, 192, 256)
    depth[60:120, 80:160] *= 0.7
    depth[0, :] = 9.0  # some range, so that a jump is a jump
    k = intrinsics_from_fov(60.0, 192, 256)
    image = torch.full((1, 192, 256, 3), 0.5)
    blank = agreement(depth[None], normal[None], mask[None], k, image)[0, 70:110, 90:150]
    image[:, 60:120, 80:160] = torch.tensor([0.9, 0.2, 0.1])
    seen = agreement(depth[None], normal[None], mask[None], k, image)[0, 70:110, 90:150]
    assert blank.median() < 0.1
    assert seen.median() > 0.9
