"""A camera walks through a room, something passes before the lens, and every frame is normalised by itself
(Eq. 7).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from fe2e_core.frame_match import View, _rotation, chain
from fe2e_core.geometry import fov_from_focal
from fe2e_core.temporal import DepthStabilizer, FrameScale, TemporalOptions, stabilize_clip
from tests.core import clips
from tests.core.simulation import eq7_label, room_depth, smooth_noise
from train.scenes import HELD_OUT

HEIGHT, WIDTH, FRAMES = 96, 128, 60


def camera(t):
    """Position (3,) and yaw of frame t."""
    return (0.02 * t - 0.5, 0.1 * math.sin(t / 9), 0.015 * t), 0.15 * math.sin(t / 14)


def walk(frames):
    """Labels (T, H, W) with noise and BF16 steps, true depth (T, H, W), and whether the passing ball is
    there.
    """
    labels, truths, balls = [], [], []
    generator = torch.Generator().manual_seed(0)
    for t in range(frames):
        ball = ((1.6 - 0.08 * (t - 12), 0.1, 0.9), 0.25) if 14 <= t < 50 else None
        depth = room_depth(*camera(t), HEIGHT, WIDTH, ball=ball)
        label, _ = eq7_label(depth, torch.ones_like(depth, dtype=torch.bool))
        noise = 0.01 * torch.randn(HEIGHT, WIDTH, generator=generator)
        labels.append((label + noise).to(torch.bfloat16).float())
        truths.append(depth)
        balls.append(
            torch.zeros_like(depth) if ball is None else (depth < room_depth(*camera(t), HEIGHT, WIDTH))
        )
    return torch.stack(labels), torch.stack(truths), torch.stack(balls).bool()


def variation(labels, truths, scales, first=0):
    """Spread over time of ln(estimate / truth) of fixed points of the room: median over points.

    The points are those that the middle frame sees; a frame counts for a point if it sees it too.
    """
    f = 0.5 * WIDTH / math.tan(math.radians(30))
    v, u = torch.meshgrid(torch.arange(2, HEIGHT, 6), torch.arange(2, WIDTH, 6), indexing="ij")
    u, v = u.flatten(), v.flatten()
    position, yaw = camera(first + len(labels) // 2)
    z = truths[len(labels) // 2, v, u]
    local = torch.stack([(u + 0.5 - WIDTH / 2) / f * z, (v + 0.5 - HEIGHT / 2) / f * z, z], -1)
    world = local @ turn(yaw).T + torch.tensor(position, dtype=torch.float64)
    errors = torch.full((len(labels), len(world)), math.nan, dtype=torch.float64)
    for t, scale in enumerate(scales):
        position, yaw = camera(first + t)
        x, y, z = ((world - torch.tensor(position, dtype=torch.float64)) @ turn(yaw)).unbind(-1)
        col, row = (x / z * f + WIDTH / 2).floor().long(), (y / z * f + HEIGHT / 2).floor().long()
        inside = (col >= 0) & (col < WIDTH) & (row >= 0) & (row < HEIGHT)
        true = truths[t, row.clamp(0, HEIGHT - 1), col.clamp(0, WIDTH - 1)]
        visible = inside & ((true / z - 1).abs() < 0.05)
        found = scale.log_range * (labels[t, row.clamp(0, HEIGHT - 1), col.clamp(0, WIDTH - 1)] + 1) / 2
        error = found + scale.log_near - torch.log(true)
        errors[t] = torch.where(visible, error, math.nan)
    enough = torch.isfinite(errors).sum(0) >= len(labels) // 3
    centred = errors[:, enough] - errors[:, enough].nanmean(0)
    return float(centred.square().nanmean(0).sqrt().median())


def turn(yaw):
    """(3, 3) camera to world."""
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


@pytest.fixture(scope="module")
def clip():
    return walk(FRAMES)


@pytest.mark.parametrize(("two_pass", "frames"), [(False, FRAMES), (True, 24)])
def test_fixed_points_keep_their_depth(clip, two_pass, frames):
    labels, truths, balls = (x[FRAMES - frames :] for x in clip)
    assert clip[2][35].any(), "the ball never came into view"
    start = true_scale(labels[0], truths[0])
    scales = stabilize_clip(labels, log_ranges=[start.log_range] * frames, two_pass=two_pass)
    assert not any(s.cut for s in scales)
    first = FRAMES - frames
    without = variation(labels, truths, [start] * frames, first)
    solved = variation(labels, truths, scales, first)
    best = variation(labels, truths, [true_scale(*p) for p in zip(labels, truths, strict=True)], first)
    print(
        f"spread of ln depth over time: one scale {without:.4f}, solved {solved:.4f}, true scales {best:.4f}"
    )
    assert solved < 0.15 * without, (solved, without, best)


def true_scale(label, depth):
    """The scale of one frame, by least squares against its true depth."""
    x, y = label.double().flatten(), torch.log(depth).flatten()
    gain = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return FrameScale(2 * gain, float(y.mean() - gain * x.mean()) - gain, False, False, 1.0, 0.0)


def test_two_passes_spread_a_step_at_a_key_frame_over_the_frames_before_it():
    """Everything from a key frame on is taken to be a tenth too far, as if the scale had drifted."""
    depths = [room_depth((0.02 * t, 0.0, 0.0), 0.05 * t - 0.3, 72, 96) for t in range(12)]
    labels = torch.stack([eq7_label(d, torch.ones_like(d, dtype=torch.bool))[0] for d in depths]).clamp(-1, 1)
    state, drift = DepthStabilizer(), 0.1

    def push_away(done):
        if done < len(labels):
            return
        keys.extend(t for t, s in enumerate(state.frames) if s.key)
        for t in range(keys[-1], done):
            state.frames[t] = replace(state.frames[t], log_near=state.frames[t].log_near + drift)

    keys = []
    ranges = [true_scale(labels[0], depths[0]).log_range] * len(labels)
    scales = stabilize_clip(labels, None, None, state, ranges, two_pass=True, on_frame=push_away)
    before, after = keys[-2:]
    assert after - before >= 4, ("too few frames to spread anything", keys)
    off = torch.stack(
        [
            (s.log_range * (x + 1) / 2 + s.log_near - d.log())[x.abs() < 1].median()
            for s, x, d in zip(scales, labels, depths, strict=True)
        ]
    )
    expected = torch.tensor([drift * min(max((t - before) / (after - before), 0), 1) for t in range(len(labels))])
    assert float((off - off[0] - expected).abs().max()) < 0.1 * drift


def test_a_scene_cut_is_found(clip):
    labels = clip[0][:6]
    other = []
    for t in range(4):
        depth = room_depth((0.0, 0.0, 0.02 * t), math.pi + 0.6, HEIGHT, WIDTH)
        other.append(eq7_label(depth, torch.ones_like(depth, dtype=torch.bool))[0])
    scales = stabilize_clip(torch.cat([labels, torch.stack(other)]))
    assert [s.cut for s in scales] == [False] * 6 + [True] + [False] * 3
    never = DepthStabilizer(TemporalOptions(cut_inliers=0.0))
    assert not any(s.cut for s in stabilize_clip(torch.stack([labels[0], other[0]]), state=never))


@pytest.fixture(scope="module")
def drawn():
    """A walk through a drawn room with pictures."""
    return clips.walk(HELD_OUT + 2, 14, 72, 96, ball=False)


def wavering(labels, strength):
    """What a weak network says: every frame bent in another way over large areas, and clipped."""
    frames, height, width = labels.shape
    generator = torch.Generator().manual_seed(5)
    bends = [smooth_noise(height, width, width // 3, generator)[..., 0] for _ in range(frames)]
    return (labels + strength * torch.stack(bends)).clamp(-1, 1)


def test_a_network_that_wavers_makes_no_cuts_and_no_collapse(drawn):
    labels = wavering(drawn.labels(0.0), 0.2)
    state = DepthStabilizer(fov_x_degrees=fov_from_focal(float(drawn.intrinsics[0, 0])))
    scales = stabilize_clip(labels, drawn.mask, drawn.image, state)
    assert not any(s.cut for s in scales)
    ranges = torch.tensor([s.log_range for s in scales])
    assert ranges.max() / ranges.min() < 2, "noise must not shrink the depth range frame by frame"
    solved = torch.stack([s.log_range * (x + 1) / 2 + s.log_near for s, x in zip(scales, labels, strict=True)])
    best = clips.spread_of_fixed_points(drawn, clips.true_scales(labels, drawn))
    assert clips.spread_of_fixed_points(drawn, solved) < 1.5 * best


def test_the_pictures_show_a_cut_that_wavering_depth_does_not(drawn):
    other = clips.walk(HELD_OUT + 7, 4, 72, 96, ball=False)
    labels = wavering(torch.cat([drawn.labels(0.0)[:6], other.labels(0.0)]), 0.2)
    images, masks = (torch.cat([getattr(drawn, n)[:6], getattr(other, n)]) for n in ("image", "mask"))
    scales = stabilize_clip(labels, masks, images)
    assert [s.cut for s in scales] == [False] * 6 + [True] + [False] * 3


def test_a_flash_is_no_cut(drawn):
    images = drawn.image[:6].clone()
    images[3] = (images[3] * 0.3 + 0.7).clamp(0, 1)
    assert not any(s.cut for s in stabilize_clip(drawn.labels(0.01)[:6], drawn.mask[:6], images))


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_noise_of_single_pixels_does_not_pull_points_to_where_it_is_averaged_out(noise):
    """Depth alone, and a ball that passes. The scales that noisy labels gave are judged on labels without noise."""
    passed = clips.walk(HELD_OUT + 7, 12, 72, 96)
    state = DepthStabilizer(fov_x_degrees=fov_from_focal(float(passed.intrinsics[0, 0])))
    scales = stabilize_clip(passed.labels(noise), passed.mask, None, state)
    labels = passed.labels(0.0)
    solved = torch.stack([s.log_range * (x + 1) / 2 + s.log_near for s, x in zip(scales, labels, strict=True)])
    assert clips.spread_of_fixed_points(passed, solved) < 0.12 * noise


@pytest.mark.parametrize("colour", [0.15, 10.0])
def test_what_moves_by_itself_in_the_pictures_has_no_say(colour):
    """Two fifths of the picture are a card that slides aside and comes nearer, before a camera that stands still. The
    card is slanted like the wall, so to depth alone it could as well be a scene that shrinks; the pictures show what
    stands still. Also where colours tell nothing apart.
    """
    generator = torch.Generator().manual_seed(2)
    wall = torch.sigmoid(2 * smooth_noise(72, 96, 6, generator, 3))
    card = torch.sigmoid(2 * smooth_noise(72, 200, 6, generator, 3))
    slant = torch.linspace(3.0, 6.0, 96).expand(72, 96).clone()
    images, depths = [], []
    for t in range(4):
        image, depth = wall.clone(), slant.clone()
        image[:, 33:72] = card[:, 4 * t : 4 * t + 39]
        depth[:, 33:72] *= 0.9 * 0.9**t
        images.append(image)
        depths.append(depth)
    labels = torch.stack([eq7_label(d, torch.ones_like(d, dtype=torch.bool))[0] for d in depths]).clamp(-1, 1)
    gain, offset = clips.true_scale(labels[0], depths[0], torch.ones_like(depths[0], dtype=torch.bool))

    def worst(images):
        state = DepthStabilizer(TemporalOptions(colour=colour))
        misses = []
        scales = stabilize_clip(labels, None, images, state, [2 * gain] * 4)
        for label, depth, scale in zip(labels, depths, scales, strict=True):
            found = scale.log_range * (label + 1) / 2 + scale.log_near + (offset - gain)
            still = label.abs() < 1
            still[:, 29:76] = False
            misses.append(float((found - torch.log(depth))[still].abs().median()))
        return max(misses)

    assert worst(torch.stack(images)) < 0.02
    assert worst(None) > 0.1, "depth alone would do"


def towards_a_corner(frames, noise, height=72, width=96):
    """Labels (T, H, W), depth (T, H, W) and pictures (T, H, W, 3) of a camera that walks straight towards the point
    where three planes meet, 12 % of the way, while what is painted on them slowly turns into something else.

    From every place on the way depth is the same but for its scale, and after a while nothing in the pictures is
    known from the first frame, though each frame has all of the one before.
    """
    generator = torch.Generator().manual_seed(3)
    focal = 0.5 * width / math.tan(math.radians(30))
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([(u + 0.5 - width / 2) / focal, (v + 0.5 - height / 2) / focal, torch.ones(height, width)], -1)
    c, s = math.cos(math.radians(20)), math.sin(math.radians(20))
    pitch = torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    planes = torch.nn.functional.normalize(torch.tensor([[1.0, 0, -1], [-1, 0, -1], [0, -1, 0]]), dim=1) @ pitch.T
    waves = 20 * torch.randn(2, 24, 3, generator=generator)
    phases = 2 * math.pi * torch.rand(2, 24, generator=generator)
    labels, depths, images = [], [], []
    for t in range(frames):
        corner = torch.tensor([0, 0, 4.0 * (1 - 0.12 * t / frames)])
        along = (planes @ corner) / (rays @ planes.T)
        depth = torch.where(along > 0, along, math.inf).amin(-1)
        places = rays * depth[..., None] - corner
        one, two = (torch.sin(places @ w.T + p).mean(-1) for w, p in zip(waves, phases, strict=True))
        turn = 1.5 * math.pi * t / frames
        images.append((0.5 + 0.15 * (math.cos(turn) * one + math.sin(turn) * two))[..., None].expand(-1, -1, 3))
        label, _ = eq7_label(depth, torch.ones_like(depth, dtype=torch.bool))
        labels.append((label + noise * torch.randn(height, width, generator=generator)).clamp(-1, 1))
        depths.append(depth)
    return torch.stack(labels), torch.stack(depths), torch.stack(images)


def test_what_depth_leaves_open_is_added_up_from_the_pictures():
    """A step towards the corner and a change of scale are one to depth: without the pictures, and for those that the
    key frame does not know, the scale would run away. Halfway the clip is saved and goes on.
    """
    frames = 24
    labels, depths, images = towards_a_corner(frames, 0.03)
    start = [true_scale(labels[0], depths[0]).log_range] * frames
    state = DepthStabilizer()
    stabilize_clip(labels[:12], None, images[:12], state, start)
    state = DepthStabilizer.from_json(state.to_json())
    stabilize_clip(labels[12:], None, images[12:], state, start)
    assert sum(s.key for s in state.frames) == 1, "a new key frame would know the pictures"
    errors = torch.stack([
        (s.log_range * (x + 1) / 2 + s.log_near - d.log()).median()
        for s, x, d in zip(state.frames, labels, depths, strict=True)
    ])  # fmt: skip
    assert float((errors - errors[0]).abs().max()) < 0.02


def test_motions_are_chained():
    """Through a third view, against the matrices, with views of different median depth."""
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    first, second = (View(label, torch.ones(8, 8, dtype=torch.bool), None, s) for s in ((1.0, 0.3), (0.7, 1.1)))
    near, far = (float(v.log_depth.median().exp()) for v in (first, second))
    one, two = (0.5 * torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    points = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    there = points @ _rotation(one[3:]).T + near * one[:3]
    there = there @ _rotation(two[3:]).T + far * two[:3]
    motion = chain(first, one, second, two)
    torch.testing.assert_close(points @ _rotation(motion[3:]).T + near * motion[:3], there)


def test_state_survives_json_and_goes_on(clip):
    labels = clip[0][:16]
    labels = labels[::2]
    whole = stabilize_clip(labels)
    state = DepthStabilizer()
    stabilize_clip(labels[:4], state=state)
    again = DepthStabilizer.from_json(state.to_json())
    assert again.frames == state.frames
    assert json.loads(again.to_json()) == json.loads(state.to_json())
    later = stabilize_clip(labels[4:], state=again)
    for a, b in zip(whole[4:], later, strict=True):
        assert a.log_range == pytest.approx(b.log_range, rel=0.01)
        assert a.log_near == pytest.approx(b.log_near, abs=0.02)


@pytest.mark.parametrize("begun", [1, 5])
def test_a_state_of_an_earlier_version_goes_on(clip, begun):
    """It knew the key frame, the last frame and the motion between them, but no anchor; here without pictures."""
    labels = clip[0][:8]
    whole = stabilize_clip(labels)
    state = DepthStabilizer()
    stabilize_clip(labels[:begun], state=state)
    saved = json.loads(state.to_json())
    saved["motion"] = saved["last_motion"]
    for name in ("onward", "last_motion", "last_reckoned", "anchor", "anchor_motion", "anchor_reckoned"):
        del saved[name]
    later = stabilize_clip(labels[begun:], state=DepthStabilizer.from_json(json.dumps(saved)))
    for a, b in zip(whole[begun:], later, strict=True):
        assert a.log_range == pytest.approx(b.log_range, rel=0.02)
        assert a.log_near == pytest.approx(b.log_near, abs=0.02)


def test_foreign_json_is_refused():
    for text in ("{}", "[1]", "no json", '{"format": 99}'):
        with pytest.raises(ValueError, match="scale state"):
            DepthStabilizer.from_json(text)
