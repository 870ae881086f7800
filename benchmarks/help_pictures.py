"""The pictures on the help pages: results of the nodes on the exact geometry of a drawn scene.

    python -m benchmarks.help_pictures [--only normals ...]     # writes web/docs/pictures/

No network is involved, so they show what a node does and not how good a model is.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.scenes import HELD_OUT, Scene, render_scene

FOLDER = Path(__file__).resolve().parent.parent / "web" / "docs" / "pictures"
SEED, HEIGHT, WIDTH = HELD_OUT + 8, 216, 288
GAP, LINE = 6, 20

Panel = tuple[str, Tensor]  # caption, picture (H,W,3) in [0,1]
Geometry = dict[str, Any]


def exact_geometry(scene: Scene) -> Geometry:
    """FE2E_GEOMETRY of a scene, as a perfect network and a perfect calibration would give it; a batch of one."""
    from tests.harness.inprocess import pack_module

    quantization = pack_module("fe2e_core.quantization")
    ends = quantization.percentile_range(scene.depth, scene.mask)
    return {
        "log_depth": quantization.encode(scene.depth, ends, bf16=None, clip=True)[None],
        "normal": scene.normal[None],
        "mask": scene.mask[None],
        "image": scene.image[None],
        "log_range": torch.tensor([ends.high - ends.low]),
        "log_near": torch.tensor([ends.low]),
        "depth": scene.depth.clamp_min(math.exp(ends.low))[None],
        "metric": True,
        "intrinsics": scene.intrinsics[None],
    }


def run(module: str, name: str, **inputs: Any) -> Tensor:
    """The first output of a node, as the picture (H,W,3) it is."""
    from tests.harness.inprocess import pack_module, run_node

    return run_node(getattr(pack_module(f"nodes.{module}"), name), **inputs)[0][0]


def options(module: str, name: str, field: str) -> Sequence[str]:
    """The entries of a node's combo box."""
    from tests.harness.inprocess import pack_module

    [found] = [i for i in getattr(pack_module(f"nodes.{module}"), name).define_schema().inputs if i.id == field]
    return [getattr(option, "key", option) for option in found.options]


def normals(geometry: Geometry) -> list[Panel]:
    return [
        (name, run("normal", "FE2ENormalColorize", geometry=geometry, convention=name))
        for name in options("normal", "FE2ENormalColorize", "convention")
    ]


def depth_presets(geometry: Geometry) -> list[Panel]:
    presets = [name for name in options("depth", "FE2ELogDepthDecode", "preset") if not name.startswith("custom")]
    return [
        (name.split(" (")[0], run("depth", "FE2ELogDepthDecode", geometry=geometry, preset=name)) for name in presets
    ]


def depth_colors(geometry: Geometry) -> list[Panel]:
    return [
        (name, run("pictures", "FE2EColorizeDepth", geometry=geometry, color_map=name))
        for name in options("pictures", "FE2EColorizeDepth", "color_map")
    ]


def clay(geometry: Geometry) -> list[Panel]:
    return [
        (f"light_x {x}, light_y {y}", run("pictures", "FE2EClay", geometry=geometry, light_x=x, light_y=y))
        for x, y in ((0.1, 0.1), (0.5, 0.0), (0.9, 0.3))
    ]


def compare(geometry: Geometry) -> list[Panel]:
    image = geometry["image"]
    depth = run("pictures", "FE2EColorizeDepth", geometry=geometry)[None]
    return [
        (f"wipe, angle {angle}", run("pictures", "FE2ECompare", image_a=image, image_b=depth, layout="wipe", angle=angle))
        for angle in (0.0, 45.0, 90.0)
    ]


def histogram(geometry: Geometry) -> list[Panel]:
    return [
        (name, run("pictures", "FE2EHistogram", geometry=geometry, mapping=name, width=WIDTH, height=HEIGHT))
        for name in options("pictures", "FE2EHistogram", "mapping")
    ]


def geometry_pair(geometry: Geometry) -> list[Panel]:
    depth = run("depth", "FE2ELogDepthDecode", geometry=geometry)
    normal = run("normal", "FE2ENormalColorize", geometry=geometry, convention="OpenGL")
    return [("image", geometry["image"][0]), ("depth", depth), ("normal", normal)]


def spoilt(geometry: Geometry, leaning: float = 0.0) -> Geometry:
    """As a weaker network would give it: noise in the depth, and a region of it that leans though its normals do not."""
    depth = geometry["depth"]
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij")
    leans = ((x - 0.28) ** 2 + (y - 0.25) ** 2 < 0.03) * leaning * (x - 0.28)
    return {**geometry, "depth": depth * (1 + 0.002 * noise + leans)}


def shaded_depth(geometry: Geometry) -> Tensor:
    """(H,W,3): clay by the normals of the depth instead of the predicted ones."""
    from tests.harness.inprocess import pack_module

    normal = pack_module("fe2e_core.geometry").normals_from_depth(geometry["depth"], geometry["intrinsics"])
    return run("pictures", "FE2EClay", geometry={**geometry, "normal": normal})


def confidence(geometry: Geometry) -> list[Panel]:
    from tests.harness.inprocess import pack_module, run_node

    given = spoilt(geometry, leaning=1.2)
    _, _, picture = run_node(pack_module("nodes.scene").FE2EConfidence, geometry=given)
    return [("the normals", run("pictures", "FE2EClay", geometry=given)), ("the depth, in clay", shaded_depth(given)),
            ("picture", picture[0])]  # fmt: skip


def refine(geometry: Geometry) -> list[Panel]:
    from tests.harness.inprocess import pack_module, run_node

    given = spoilt(geometry)
    (refined,) = run_node(pack_module("nodes.scene").FE2ERefine, geometry=given)
    return [("depth, in clay", shaded_depth(given)), ("refined", shaded_depth(refined)), ("exact", shaded_depth(geometry))]


def features(geometry: Geometry) -> list[Panel]:
    """Of the embedded model, which knows scenes like this one."""
    from tests.harness.inprocess import pack_module, run_node

    folders = pack_module("nodes.folders")
    folders.register()
    source = {"source": "FE2E checkpoint", "checkpoint": "fe2e-nano.safetensors", "lora": "none", "lora_strength": 1.0}
    (model,) = run_node(pack_module("nodes.loading").FE2ELoadModel, source=source)
    node, image = pack_module("nodes.features").FE2EFeatureView, geometry["image"]
    panels = []
    for block in ("block 1", "block 35"):
        choice = next(o for o in options("features", "FE2EFeatureView", "block") if o.startswith(block))
        depth, normal, _ = run_node(node, fe2e_model=model, image=image, block={"block": choice})
        panels += [(f"{block}, depth_features", depth[0]), (f"{block}, normal_features", normal[0])]
    return panels


PICTURES: dict[str, Callable[[Geometry], list[Panel]]] = {
    "geometry": geometry_pair,
    "normals": normals,
    "depth_presets": depth_presets,
    "depth_colors": depth_colors,
    "clay": clay,
    "compare": compare,
    "histogram": histogram,
    "confidence": confidence,
    "refine": refine,
    "features": features,
}


def sheet(panels: Sequence[Panel], columns: int = 3) -> Image.Image:
    """The panels in rows, each with its caption below."""
    columns = 2 if len(panels) == 4 else min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (columns * (WIDTH + GAP) - GAP, rows * (HEIGHT + LINE + GAP) - GAP)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for number, (caption, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = column * (WIDTH + GAP), row * (HEIGHT + LINE + GAP)
        pixels = picture.mul(255).round().clamp(0, 255).byte().cpu().numpy()
        page.paste(Image.fromarray(pixels), (x, y))
        draw.text((x + WIDTH // 2, y + HEIGHT + LINE // 2), caption, fill="black", font=font, anchor="mm")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    chosen = parser.parse_args().only
    from tests.harness.inprocess import import_comfyui

    import_comfyui()
    geometry = exact_geometry(render_scene(SEED, HEIGHT, WIDTH))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        temporary = FOLDER / f".{name}.part"
        sheet(PICTURES[name](geometry)).save(temporary, "JPEG", quality=85, optimize=True)
        os.replace(temporary, FOLDER / f"{name}.jpg")
        print(FOLDER / f"{name}.jpg")


if __name__ == "__main__":
    main()
