"""3D and picture nodes, and what ComfyUI's own nodes make of their results."""

from __future__ import annotations

import importlib
import io
import math
from types import ModuleType

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import Types
from PIL import Image

from tests.core.solid_files import glb_picture, read_glb, read_ply
from tests.harness.inprocess import pack_module, run_node
from train.scenes import render_scene

H, W = 60, 80


def core_nodes(name: str) -> ModuleType:
    """A module of ComfyUI's own nodes. Skips where ComfyUI is too old to have it."""
    return pytest.importorskip(f"comfy_extras.{name}", reason=f"this ComfyUI has no {name}")


def core_glb_writer() -> type:
    """ComfyUI's node that saves a MESH, in whichever file it is."""
    for name in ("nodes_save_3d", "nodes_hunyuan3d"):
        try:
            module = importlib.import_module(f"comfy_extras.{name}")
        except ModuleNotFoundError:
            continue
        if hasattr(module, "SaveGLB"):
            return module.SaveGLB
    pytest.skip("this ComfyUI has no SaveGLB")


@pytest.fixture(scope="module")
def geometry():
    scene = render_scene(11, H, W, "room")
    logarithm = scene.depth[scene.mask].log()
    low, high = logarithm.quantile(0.02).item(), logarithm.quantile(0.98).item()
    span = high - low
    label = 2 * (scene.depth.clamp_min(1e-3).log() - low) / span - 1
    one = {
        "log_depth": label,
        "normal": scene.normal,
        "mask": scene.mask,
        "image": scene.image,
        "depth": scene.depth,
        "intrinsics": scene.intrinsics,
        "confidence": torch.ones(H, W),
        "log_range": torch.tensor(span),
        "log_near": torch.tensor(low),
    }
    return {**{key: torch.stack([value, value]) for key, value in one.items()}, "metric": True}


@pytest.fixture
def bare(geometry):
    return {key: geometry[key] for key in ("log_depth", "normal", "mask", "image")}


def test_mesh(geometry):
    node = pack_module("nodes.mesh").FE2EMesh
    glb, mesh, camera = run_node(node, geometry=geometry, batch_index=1)
    assert glb.format == "glb"
    document, arrays = read_glb(glb.get_bytes())
    assert mesh.vertices.shape == (1, len(arrays["POSITION"]), 3)
    assert torch.equal(mesh.vertices[0], torch.from_numpy(arrays["POSITION"].copy()))
    assert len(arrays["NORMAL"]) == len(arrays["POSITION"])
    assert document["images"][0]["mimeType"] == "image/png"
    vertical = 2 * math.degrees(math.atan(0.5 / geometry["intrinsics"][0, 1, 1].item()))
    assert camera["fov"] == pytest.approx(vertical)
    assert math.degrees(document["cameras"][0]["perspective"]["yfov"]) == pytest.approx(vertical)


def test_relative_geometry_is_welcome(bare):
    module = pack_module("nodes.mesh")
    glb, *_ = run_node(module.FE2EMesh, geometry=bare, fov=90.0, far_near_ratio=4.0, texture="none")
    _, arrays = read_glb(glb.get_bytes())
    depth = -arrays["POSITION"][:, 2]
    assert depth.max() / depth.min() < 4.0 * 1.5
    ply, _ = run_node(module.FE2EPointCloud, geometry=bare)
    assert ply.format == "ply"
    assert len(read_ply(ply.get_bytes())["x"]) > 1000
    assert "depth" not in bare


def test_core_saves_our_mesh_as_it_stands_in_our_file(geometry, tmp_path, monkeypatch):
    """ComfyUI's own GLB writer takes the MESH: the surface of our GLB, and the camera sees it as the picture."""
    save_glb = core_glb_writer()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    ours, mesh, _ = run_node(pack_module("nodes.mesh").FE2EMesh, geometry=geometry)
    run_node(save_glb, mesh=mesh, filename_prefix="fe2e")
    (file,) = tmp_path.glob("fe2e*.glb")
    document, saved = read_glb(file.read_bytes())
    _, expected = read_glb(ours.get_bytes())
    assert np.array_equal(saved["POSITION"], expected["POSITION"])
    assert np.array_equal(saved["indices"], expected["indices"])
    # y up, looking along -z: where the lens puts each point
    x, y, z = saved["POSITION"].astype(np.float64).T
    k = geometry["intrinsics"][0].double().numpy()
    seen = np.stack([k[0, 0] * x / -z + k[0, 2], k[1, 1] * -y / -z + k[1, 2]], -1)
    corners = saved["POSITION"][saved["indices"]].astype(np.float64)
    turned = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((turned * corners.mean(1)).sum(-1) < 0).all(), "the front of every triangle is toward the lens"
    if "TEXCOORD_0" not in saved:  # ComfyUI 0.18 writes meshes of one colour
        return
    assert np.array_equal(saved["TEXCOORD_0"], expected["TEXCOORD_0"])
    assert np.abs(saved["TEXCOORD_0"] - seen).max() < 1e-5
    texture = np.asarray(Image.open(io.BytesIO(glb_picture(document, file.read_bytes()))))
    picture = geometry["image"][0].numpy()
    assert np.abs(texture / 255 - picture).max() < 1.01 / 255


def test_core_reads_our_splats(geometry):
    """ComfyUI's splat reader takes what its writer makes of our SPLAT."""
    nodes_gaussian_splat = core_nodes("nodes_gaussian_splat")
    splat, _ = run_node(pack_module("nodes.mesh").FE2ESplat, geometry=geometry)
    assert splat.positions.shape[0] == 1
    (file,) = run_node(nodes_gaussian_splat.SplatToFile3D, splat=splat, format="ply")
    (back,) = run_node(nodes_gaussian_splat.File3DToSplat, model_3d=file)
    assert torch.allclose(back.positions, splat.positions)
    assert torch.allclose(back.scales, splat.scales, rtol=1e-4)
    assert torch.allclose(back.sh, splat.sh, atol=1e-5)


def test_core_renders_the_splats_from_our_camera_as_the_photograph(geometry):
    """From the photograph's place RenderSplat shows the photograph: axes, camera and sizes fit together."""
    nodes_gaussian_splat = core_nodes("nodes_gaussian_splat")
    module = pack_module("nodes.mesh")
    splat, camera = run_node(module.FE2ESplat, geometry=geometry, stride=1, edge=0.0)
    xyz, rgb, opacity, scale, rot = nodes_gaussian_splat._gaussian_item(splat, 0, torch.device("cpu"))
    picture, cover = nodes_gaussian_splat._render_gaussian(
        xyz, rgb, opacity, scale, rot, W, H, 1.0, (0.0, 0.0, 0.0), camera
    )
    inner = (slice(4, -4), slice(4, -4))
    assert cover[inner].min() > 0.9, "closed"
    error = (picture - geometry["image"][0]).abs().mean(-1)[inner]
    mirrored = (picture.flip(1) - geometry["image"][0]).abs().mean(-1)[inner]
    assert error.median() < 0.015
    assert error.mean() < 0.5 * mirrored.mean()


def test_moge_bridge(geometry):
    nodes_moge = core_nodes("nodes_moge")
    node = pack_module("nodes.bridges").FE2EToMoGe
    hole = geometry["mask"].clone()
    hole[:, :10, :10] = False
    (moge,) = run_node(node, geometry={**geometry, "mask": hole})
    (mesh,) = run_node(nodes_moge.MoGePointMapToMesh, moge_geometry=moge)
    _, ours, _ = run_node(pack_module("nodes.mesh").FE2EMesh, geometry={**geometry, "mask": hole})
    # both meshes have the same points where both have one
    theirs = {tuple(v) for v in mesh.vertices[0].round(decimals=4).tolist()}
    mine = {tuple(v) for v in ours.vertices[0].round(decimals=4).tolist()}
    assert len(mine & theirs) > 0.9 * min(len(mine), len(theirs))
    (picture,) = run_node(nodes_moge.MoGeRender, moge_geometry=moge, output="normal_opengl")
    expected = pack_module("fe2e_core.geometry").encode_normal(geometry["normal"], "OpenGL")
    assert torch.allclose(picture, expected, atol=1e-5)
    (depth,) = run_node(nodes_moge.MoGeRender, moge_geometry=moge, output="depth")
    assert (depth[:, :10, :10] == 0).all()


def test_da3_bridge(geometry):
    nodes_depth_anything_3 = core_nodes("nodes_depth_anything_3")
    node = pack_module("nodes.bridges").FE2EToDA3
    (da3,) = run_node(node, geometry=geometry)
    (mesh,) = run_node(nodes_depth_anything_3.DA3GeometryToMesh, da3_geometry=da3)
    _, ours, _ = run_node(pack_module("nodes.mesh").FE2EMesh, geometry=geometry)
    theirs = {tuple(v) for v in mesh.vertices[0].round(decimals=3).tolist()}
    mine = {tuple(v) for v in ours.vertices[0].round(decimals=3).tolist()}
    assert len(mine & theirs) > 0.8 * min(len(mine), len(theirs)), "half a pixel off would share almost none"


def test_batch_index(geometry):
    module = pack_module("nodes.mesh")
    for node in (module.FE2EMesh, module.FE2EPointCloud, module.FE2ESplat):
        if node is module.FE2ESplat and not hasattr(Types, "SPLAT"):
            # A ComfyUI without splats: the node is there, and says what is missing.
            with pytest.raises(RuntimeError, match="update ComfyUI"):
                run_node(node, geometry=geometry)
            continue
        with pytest.raises(ValueError, match="batch_index"):
            run_node(node, geometry=geometry, batch_index=2)


def test_pictures(geometry, bare):
    module = pack_module("nodes.pictures")
    (colors,) = run_node(module.FE2EColorizeDepth, geometry=bare)
    assert colors.shape == (2, H, W, 3)
    nearest = bare["log_depth"][0].argmin()
    red = torch.tensor([158, 1, 66]) / 255
    assert torch.allclose(colors[0].reshape(-1, 3)[nearest], red, atol=0.01), "near is red, as in the paper"
    (clay,) = run_node(module.FE2EClay, geometry=bare)
    assert clay.shape == (2, H, W, 3)
    (side,) = run_node(module.FE2ECompare, image_a=colors, image_b=clay[:1], image_c=colors)
    assert side.shape == (2, H, 3 * W + 2 * 4, 3)
    with pytest.raises(ValueError, match="image_b: found a batch of 2, expected 1 or 3"):
        run_node(module.FE2ECompare, image_a=colors[:1], image_b=colors[:1].repeat(2, 1, 1, 1), image_c=colors[:1].repeat(3, 1, 1, 1))
    other = colors[:1].repeat(3, 1, 1, 1)  # not for the wipe
    (wiped,) = run_node(module.FE2ECompare, image_a=colors, image_b=clay, image_c=other, layout="wipe")
    assert wiped.shape == (2, H, W, 3)
    picture, text = run_node(module.FE2EHistogram, geometry=geometry, mapping="relative")
    assert picture.shape == (1, 384, 768, 3)
    middle = float(text.splitlines()[2].split(":")[1])
    assert middle == pytest.approx(geometry["depth"][0].median().item(), rel=1e-2)


def test_every_input_has_a_tooltip():
    names = ("depth", "normal", "export", "mesh", "bridges", "pictures")
    for node in [node for name in names for node in pack_module(f"nodes.{name}").NODES]:
        schema = node.GET_SCHEMA()
        assert schema.description, schema.node_id
        assert schema.search_aliases, schema.node_id
        assert schema.category.startswith("FE2E")
        for field in schema.inputs:
            assert field.tooltip, f"{schema.node_id}.{field.id}"
