"""EXR files: what other readers see, and that nothing is lost on the way back."""

from __future__ import annotations

import math
import struct

import av
import numpy as np
import pytest
import torch

from fe2e_core.exr import EXR_PRESETS, linear_from_srgb, read_exr, srgb_from_linear, write_exr
from tests.core import exr_file
from train.scenes import render_scene

PRESETS = list(EXR_PRESETS)
H, W = 45, 64


@pytest.fixture(scope="module")
def geometry():
    scene = render_scene(3, H, W)
    depth = torch.where(scene.mask, scene.depth, torch.full_like(scene.depth, 50.0))
    both = {
        "log_depth": (torch.log(depth) / 4).clamp(-1, 1),
        "normal": scene.normal,
        "mask": scene.mask,
        "image": scene.image,
        "depth": depth,
        "intrinsics": scene.intrinsics,
        "confidence": torch.rand(H, W, generator=torch.Generator().manual_seed(0)),
        "log_range": torch.tensor(2.5),
        "log_near": torch.tensor(-0.25),
    }
    stacked = {key: torch.stack([value, value]) for key, value in both.items()}
    stacked["depth"][1] *= 2
    return {**stacked, "metric": True}


@pytest.mark.parametrize("preset", PRESETS)
def test_openexr_and_the_format_itself_agree(geometry, tmp_path, preset):
    """The OpenEXR bindings and a reader written from the specification see identical floats in every
    channel."""
    import OpenEXR

    path = tmp_path / "a.exr"
    write_exr(path, geometry, 1, preset)
    _, independent = exr_file.read_exr(path.read_bytes())
    with OpenEXR.File(str(path), separate_channels=True) as file:
        bindings = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    expected = {name for names in EXR_PRESETS[preset].channels.values() for name in names}
    assert set(bindings) == set(independent) == expected
    for name in expected:
        assert bindings[name].dtype == np.float32
        assert np.array_equal(bindings[name], independent[name]), name


@pytest.mark.parametrize("preset", ["FE2E (OpenCV axes, metres)", "Nuke"])
def test_ffmpeg_reads_the_same(geometry, tmp_path, preset):
    """ffmpeg decodes EXR with its own code: the picture, and the layer of the normals."""
    path = tmp_path / "a.exr"
    write_exr(path, geometry, 0, preset)
    _, independent = exr_file.read_exr(path.read_bytes())
    names = EXR_PRESETS[preset].channels
    for layer, key in ((None, "picture"), ("N", "normal")):
        with av.open(str(path)) as container:
            if layer is not None:
                container.streams.video[0].codec_context.options = {"layer": layer}
            frame = next(container.decode(video=0))
        assert frame.format.name in ("gbrpf32le", "gbrapf32le")
        green, blue, red = (np.frombuffer(frame.planes[i], "<f4").reshape(H, -1)[:, :W] for i in range(3))
        for plane, name in zip((red, green, blue), names[key], strict=True):
            assert np.array_equal(plane, independent[name]), name


# What each program's axes are, for a wall to the right of the camera that faces left, a floor, and a facing
# wall. From the programs' manuals, not from our table: Blender and Nuke cameras have y up and look along -z;
# in Unreal x is forward, y right, z up.
DIRECTIONS = {
    "FE2E (OpenCV axes, metres)": {"left": (-1, 0, 0), "up": (0, -1, 0), "toward": (0, 0, -1)},
    "Blender": {"left": (-1, 0, 0), "up": (0, 1, 0), "toward": (0, 0, 1)},
    "Nuke": {"left": (-1, 0, 0), "up": (0, 1, 0), "toward": (0, 0, 1)},
    "Unreal": {"left": (0, -1, 0), "up": (0, 0, 1), "toward": (-1, 0, 0)},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_normal_axes_and_units(geometry, tmp_path, preset):
    normal = torch.zeros(H, W, 3)
    normal[:10] = torch.tensor([-1.0, 0, 0])
    normal[10:20] = torch.tensor([0, -1.0, 0])
    normal[20:] = torch.tensor([0, 0, -1.0])
    path = tmp_path / "a.exr"
    write_exr(path, {**geometry, "normal": normal.expand(2, H, W, 3)}, 0, preset)
    _, planes = exr_file.read_exr(path.read_bytes())
    seen = np.stack([planes[name] for name in EXR_PRESETS[preset].channels["normal"]], axis=-1)
    for row, which in ((5, "left"), (15, "up"), (30, "toward")):
        assert np.array_equal(seen[row, 7], np.array(DIRECTIONS[preset][which], np.float32)), which
    depth = planes[EXR_PRESETS[preset].channels["depth"][0]]
    per_metre = 100 if preset == "Unreal" else 1
    assert np.allclose(depth, geometry["depth"][0].numpy() * per_metre, rtol=1e-6)


# Unit vectors along a program's axes, and its units per metre. Again from the manuals.
FRAMES = {
    "FE2E (OpenCV axes, metres)": {"right": (1, 0, 0), "up": (0, -1, 0), "ahead": (0, 0, 1), "metre": 1},
    "Blender": {"right": (1, 0, 0), "up": (0, 1, 0), "ahead": (0, 0, -1), "metre": 1},
    "Nuke": {"right": (1, 0, 0), "up": (0, 1, 0), "ahead": (0, 0, -1), "metre": 1},
    "Unreal": {"right": (0, 1, 0), "up": (0, 0, 1), "ahead": (1, 0, 0), "metre": 100},
}


def ball_before_a_wall(right, up, ahead, metre):
    """Depth (H, W) and normals (H, W, 3) in a program's own axes and units: a ball of 1 m, 0.4 m to the right and
    0.3 m above the axis, 4 m ahead, before a wall 9 m away; every ray is cast in those axes. Focal length 0.8
    widths.
    """
    right, up, ahead = (np.array(v, np.float64) for v in (right, up, ahead))
    across = ((np.arange(W) + 0.5) / W - 0.5) / 0.8
    rise = -((np.arange(H) + 0.5) - H / 2) / (0.8 * W)
    rays = ahead + across[None, :, None] * right + rise[:, None, None] * up
    centre, radius = metre * (0.4 * right + 0.3 * up + 4.0 * ahead), 1.0 * metre
    a, b, c = (rays * rays).sum(-1), rays @ centre, centre @ centre - radius**2
    hit = b * b > a * c
    distance = np.where(hit, (b - np.sqrt(np.maximum(b * b - a * c, 0))) / a, 9.0 * metre)  # rays are one unit ahead
    ball = (distance[..., None] * rays - centre) / radius
    return distance, np.where(hit[..., None], ball, -ahead), hit


@pytest.mark.parametrize("preset", PRESETS)
def test_a_ball_is_as_if_rendered_in_the_programs_own_axes(geometry, tmp_path, preset):
    depth, normal, hit = ball_before_a_wall(**FRAMES["FE2E (OpenCV axes, metres)"])
    given = {**geometry, "depth": torch.from_numpy(depth).float().expand(2, H, W)}
    given["normal"] = torch.from_numpy(normal).float().expand(2, H, W, 3)
    path = tmp_path / "ball.exr"
    write_exr(path, given, 0, preset)
    _, planes = exr_file.read_exr(path.read_bytes())
    names = EXR_PRESETS[preset].channels
    rendered_depth, rendered_normal, rendered_hit = ball_before_a_wall(**FRAMES[preset])
    assert np.array_equal(hit, rendered_hit)
    assert 100 < hit.sum() < hit.size / 2
    assert np.allclose(planes[names["depth"][0]], rendered_depth, rtol=1e-5)
    seen = np.stack([planes[name] for name in names["normal"]], axis=-1)
    assert np.allclose(seen, rendered_normal, atol=1e-6)
    # which way the ball bulges, so that no two mistakes cancel
    rows, columns = np.nonzero(hit)
    rightmost, topmost = columns.argmax(), rows.argmin()
    assert seen[rows[rightmost], columns[rightmost]] @ FRAMES[preset]["right"] > 0.5
    assert seen[rows[topmost], columns[topmost]] @ FRAMES[preset]["up"] > 0.5


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(geometry, tmp_path, preset):
    path = tmp_path / "a.exr"
    write_exr(path, geometry, 1, preset)
    back = read_exr(path)
    assert set(back) == set(geometry)
    assert back["metric"] is True
    for key in ("log_depth", "normal", "mask", "confidence", "intrinsics", "log_range", "log_near"):
        assert torch.equal(back[key][0], geometry[key][1]), key
    assert torch.allclose(back["depth"][0], geometry["depth"][1], rtol=1e-6)
    assert torch.allclose(back["image"][0], geometry["image"][1], atol=1e-6)


def test_camera_in_the_header(geometry, tmp_path):
    """EXR's own camera attributes against first principles."""
    k = torch.tensor([[0.9, 0, 0.45], [0, 1.1, 0.6], [0, 0, 1]]).expand(2, 3, 3)
    path = tmp_path / "a.exr"
    write_exr(path, {**geometry, "intrinsics": k}, 0, PRESETS[0])
    header, _ = exr_file.read_exr(path.read_bytes())
    (window,) = struct.unpack("<f", header["screenWindowWidth"])
    centre = struct.unpack("<2f", header["screenWindowCenter"])
    # the picture's edges on the plane z = 1 are (0 - cx) / fx and (1 - cx) / fx, y up
    left, right = (0 - 0.45) / 0.9, (1 - 0.45) / 0.9
    top, bottom = -(0 - 0.6) / 1.1, -(1 - 0.6) / 1.1
    assert window == pytest.approx(right - left)
    assert centre == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    (pixel,) = struct.unpack("<f", header["pixelAspectRatio"])
    assert pixel == pytest.approx(((right - left) / W) / ((top - bottom) / H))
    (focal,) = struct.unpack("<f", header["fe2eFocalLength35mm"])
    assert focal == pytest.approx(0.9 * 36)
    assert math.isfinite(struct.unpack("<f", header["fe2eFieldOfViewX"])[0])


def test_relative_depth_says_so(geometry, tmp_path):
    path = tmp_path / "a.exr"
    relative = {key: value for key, value in geometry.items() if key not in ("log_range", "confidence")}
    write_exr(path, {**relative, "metric": False}, 0, "Unreal")
    header, planes = exr_file.read_exr(path.read_bytes())
    assert header["fe2eUnit"].startswith(b"near plane")
    assert "Confidence.R" not in planes
    back = read_exr(path)
    assert back["metric"] is False
    assert "log_range" not in back


def test_srgb_curve():
    ramp = torch.linspace(0, 1, 1001)
    assert torch.allclose(srgb_from_linear(linear_from_srgb(ramp)), ramp, atol=1e-6)
    # mid-grey of an 8-bit picture is 21.4 % of the light
    assert linear_from_srgb(torch.tensor(0.5)).item() == pytest.approx(0.21404, abs=1e-5)


def test_refused(geometry, tmp_path):
    import OpenEXR

    with pytest.raises(ValueError, match="preset"):
        write_exr(tmp_path / "a.exr", geometry, 0, "Maya")
    with pytest.raises(ValueError, match="index"):
        write_exr(tmp_path / "a.exr", geometry, 2, PRESETS[0])
    with pytest.raises(ValueError, match="depth"):
        write_exr(tmp_path / "a.exr", {**geometry, "depth": None}, 0, PRESETS[0])
    assert not (tmp_path / "a.exr").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.exr"):
        read_exr(tmp_path / "none.exr")
    (tmp_path / "bad.exr").write_bytes(b"not an exr at all")
    with pytest.raises(ValueError, match=r"bad\.exr"):
        read_exr(tmp_path / "bad.exr")
    foreign = tmp_path / "foreign.exr"
    OpenEXR.File({}, {"Q": np.zeros((4, 4), np.float32)}).write(str(foreign))
    with pytest.raises(ValueError, match="Q"):
        read_exr(foreign)


def test_an_attribute_whose_type_is_no_text_is_refused(geometry, tmp_path):
    """The binding cannot even show it; found by tools.fuzz."""
    path = tmp_path / "damaged.exr"
    write_exr(path, geometry, 0, PRESETS[0])
    data = bytearray(path.read_bytes())
    at = data.index(b"fe2eIntrinsics\0") + len(b"fe2eIntrinsics\0")
    data[at : at + 2] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.exr.*fe2eIntrinsics"):
        read_exr(path)
