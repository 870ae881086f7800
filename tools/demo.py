"""`make demo [IMAGE=photo.jpg]`: a photograph and a drawn scene through a real ComfyUI, into out/demo/.

Starts ComfyUI with the pack and the embedded model, runs the quick-start workflow over its HTTP interface,
once per picture, and leaves in out/demo/photo/ and out/demo/scene/:
    depth.png, normal.png   the pictures that the workflow saves
    geometry.npz            the raw floats (log_depth, normal, mask, image)
    side_by_side.png        input, depth and normals; for the drawn scene the exact answer below them
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tools.comfyui import ROOT
from tools.server import ComfyServer, Prompt

OUT = ROOT / "out" / "demo"
WORKFLOW = ROOT / "tests" / "api_workflows" / "quick_start.json"
SCENE_SIZE = (384, 512)  # height, width
SCENE_SEED = 8  # added to the first held-out seed: the embedded model never saw this scene
PANEL_HEIGHT = 384


@dataclass(frozen=True)
class Case:
    """One picture of the demo. truth: the exact depth and normal pictures, where they are known."""

    name: str
    image: Image.Image
    truth: tuple[Image.Image, Image.Image] | None = None


def photograph(path: Path | None) -> Case:
    """The user's photograph, upright, or the portrait that scikit-image brings along (NASA, public domain).
    """
    if path is None:
        from skimage import data

        return Case("photo", Image.fromarray(data.astronaut()))
    with Image.open(path) as image:
        # ComfyUI's LoadImage ignores the orientation tag that phones write; here it is applied beforehand.
        return Case("photo", ImageOps.exif_transpose(image).convert("RGB"))


def drawn_scene() -> Case:
    """A held-out procedural scene with its exact answer, drawn the way the workflow draws the estimate."""
    from fe2e_core.depth_decoding import DepthStyle, decode_depth
    from fe2e_core.geometry import encode_normal
    from fe2e_core.quantization import encode, percentile_range
    from train.scenes import HELD_OUT, render_scene

    scene = render_scene(HELD_OUT + SCENE_SEED, *SCENE_SIZE)
    depth, mask = scene.depth[None], scene.mask[None]
    label = encode(depth, percentile_range(depth, mask), bf16=None, clip=True)
    picture = decode_depth(label, mask, DepthStyle("disparity", near_white=True)).picture[0]
    normal = encode_normal(scene.normal, "OpenGL")
    return Case("scene", _image(scene.image), (_image(picture[..., None].expand(-1, -1, 3)), _image(normal)))


def _image(values) -> Image.Image:
    """A float tensor (H,W,3) in [0,1] as a picture."""
    return Image.fromarray(values.mul(255).round().clamp(0, 255).byte().numpy())


def prepared(prompt: Prompt, image: str) -> tuple[Prompt, dict[str, str]]:
    """The quick start for one input file, with the raw geometry saved as well; and the ids of what saves
    what.
    """
    prompt = copy.deepcopy(prompt)
    ids = {node["class_type"]: key for key, node in prompt.items()}
    prompt[ids["LoadImage"]]["inputs"]["image"] = image
    prompt["geometry"] = {
        "class_type": "FE2ESaveNPZ",
        "inputs": {
            "geometry": [ids["FE2EEstimate"], 0],
            "filename_prefix": "FE2E/geometry",
            "include_image": True,
            "compress": True,
        },
    }
    slots = {1: "depth", 2: "normal"}
    saved = {slots[n["inputs"]["images"][1]]: k for k, n in prompt.items() if n["class_type"] == "SaveImage"}
    return prompt, saved


def run_case(server: ComfyServer, prompt: Prompt, case: Case) -> Path:
    """Runs one picture and writes its folder."""
    case.image.save(server.input / f"{case.name}.png")
    prepared_prompt, saved = prepared(prompt, f"{case.name}.png")
    result = server.run(prepared_prompt)
    folder = OUT / case.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, node_id in saved.items():
        [path] = result.files(node_id)
        _place(path, folder / f"{name}.png")
    [path] = result.files("geometry", "files")
    _place(path, folder / "geometry.npz")
    with Image.open(folder / "depth.png") as depth, Image.open(folder / "normal.png") as normal:
        rows = [[("input", case.image), ("depth", depth), ("normal", normal)]]
        if case.truth is not None:
            rows.append([("", None), ("exact depth", case.truth[0]), ("exact normal", case.truth[1])])
        montage = side_by_side(rows)
    temporary = folder / ".side_by_side.png"
    montage.save(temporary)
    os.replace(temporary, folder / "side_by_side.png")
    return folder


def _place(source: Path, target: Path) -> None:
    """Copies by way of a temporary file, so that `target` is never half-written."""
    temporary = target.with_name("." + target.name)
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def side_by_side(rows: Sequence[Sequence[tuple[str, Image.Image | None]]]) -> Image.Image:
    """A grid of labelled pictures of one height."""
    panels = [[(label, _panel(image)) for label, image in row] for row in rows]
    cell = next(panel for _, panel in panels[0]).size
    gap, caption = 8, 24
    width = max(len(row) for row in panels) * (cell[0] + gap) + gap
    canvas = Image.new("RGB", (width, len(rows) * (cell[1] + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=16)
    for y, row in enumerate(panels):
        for x, (label, panel) in enumerate(row):
            left, top = gap + x * (cell[0] + gap), gap + y * (cell[1] + caption + gap)
            if panel is not None:
                canvas.paste(panel, (left, top + caption))
            draw.text((left, top), label, fill="black", font=font)
    return canvas


def _panel(image: Image.Image | None) -> Image.Image | None:
    if image is None:
        return None
    width = max(1, round(image.width * PANEL_HEIGHT / image.height))
    return image.convert("RGB").resize((width, PANEL_HEIGHT), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description="Depth and normals of a photograph and of a drawn scene.")
    parser.add_argument("--image", type=Path, help="your photograph, instead of the one that comes along")
    arguments = parser.parse_args()
    if arguments.image is not None and not arguments.image.is_file():
        parser.error(f"--image {arguments.image}: there is no such file")

    began = time.monotonic()
    prompt = json.loads(WORKFLOW.read_text())
    with tempfile.TemporaryDirectory(prefix="fe2e-demo-") as folder, ThreadPoolExecutor(1) as pool:
        server = ComfyServer(Path(folder))
        # ComfyUI needs seconds to start; the pictures are made meanwhile.
        starting = pool.submit(server.start)
        try:
            cases = [photograph(arguments.image), drawn_scene()]
            starting.result()
            folders = [run_case(server, prompt, case) for case in cases]
        finally:
            wait([starting])  # a start that is still under way would outlive the stop
            server.stop()
    for written in folders:
        print(f"{written.relative_to(ROOT)}/: " + ", ".join(sorted(p.name for p in written.iterdir())))
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
