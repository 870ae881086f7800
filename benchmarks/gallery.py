"""`python -m benchmarks.gallery`: docs/gallery.md and its pictures, ten photographs and ten procedural scenes.

Every strip shows the input, depth, normals, and the normals lit like clay; below a procedural scene the exact ones.
The scenes are the first ten held-out ones, not chosen. What fails is said: by numbers for the scenes, by places whose
order and slant anyone can see for the photographs.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.gallery_check import Verdict, judge, table
from benchmarks.gallery_pictures import PHOTOGRAPHS, REMARKS, REMARKS_FOR, Photograph
from fe2e_core.colors import apply_color_map
from fe2e_core.depth_decoding import DepthStyle, decode_depth
from fe2e_core.geometry import encode_normal
from fe2e_core.metrics import abs_rel, align_log, angular_error_deg
from fe2e_core.quantization import encode, percentile_range
from fe2e_core.shading import clay
from train.predictor import GeometryPredictor
from train.scenes import HELD_OUT, Scene, render_scene

ROOT = Path(__file__).resolve().parent.parent
SCENES = 10
SCENE_SIZE = (384, 512)  # height, width
PANEL = (240, 240)  # the largest width and height of one picture of a strip
LIMIT = 60_000  # bytes of a strip
_GAP = 4
_CAPTIONS = ("input", "depth: near is red", "normals", "clay")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One strip. error: of a scene, AbsRel after logarithmic alignment and the mean angle in degrees. verdict: of a
    photograph."""

    name: str
    title: str
    rows: tuple[tuple[Tensor, ...], ...]
    error: tuple[float, float] | None = None
    verdict: Verdict | None = None


def views(log_depth: Tensor, normal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1,H,W) log-depth, (1,H,W,3) normals, (1,H,W) mask -> depth, normal and clay pictures (H,W,3) in [0,1]."""
    grey = decode_depth(log_depth, mask, DepthStyle("log", near_white=False)).picture[0]
    return apply_color_map(grey, "spectral"), encode_normal(normal[0], "OpenGL"), clay(normal, mask)[0]


def photograph(predictor: GeometryPredictor, about: Photograph) -> Entry:
    """The strip of a photograph."""
    image = about.load()
    geometry = predictor(image)
    row = (image, *views(geometry["log_depth"], geometry["normal"], geometry["mask"]))
    return Entry(about.name, about.title, (row,), verdict=judge(about, geometry["log_depth"][0], geometry["normal"][0]))


def scene(predictor: GeometryPredictor, number: int) -> Entry:
    """The strip of a held-out procedural scene, and how wrong it is."""
    truth: Scene = render_scene(HELD_OUT + number, *SCENE_SIZE)
    geometry = predictor(truth.image)
    depth, mask = truth.depth[None], truth.mask[None]
    label = encode(torch.where(mask, depth, depth[mask].max()), percentile_range(depth, mask), bf16=None, clip=True)
    aligned = align_log(geometry["log_depth"][0], truth.depth, truth.mask)
    angle = angular_error_deg(geometry["normal"][0], truth.normal)[truth.mask].mean()
    blank = torch.ones(*SCENE_SIZE, 3)
    rows = (
        (truth.image, *views(geometry["log_depth"], geometry["normal"], geometry["mask"])),
        (blank, *views(label, truth.normal[None], torch.ones_like(mask))),
    )
    error = (abs_rel(aligned.depth, truth.depth, truth.mask), float(angle))
    return Entry(f"scene-{number}", f"held-out scene {number}", rows, error)


def strip(entry: Entry) -> bytes:
    """The JPEG of an entry, at most LIMIT bytes. Raises ValueError when no quality makes it that small."""
    rows = [[_panel(values) for values in row] for row in entry.rows]
    width, height = rows[0][0].size
    caption = 16
    canvas = Image.new("RGB", (len(rows[0]) * (width + _GAP) - _GAP, caption + len(rows) * (height + _GAP) - _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for column, text in enumerate(_CAPTIONS):
        draw.text((column * (width + _GAP), 0), text, fill="black", font=font)
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            canvas.paste(panel, (column * (width + _GAP), caption + number * (height + _GAP)))
    if len(rows) > 1:
        draw.text((width - 60, caption + height + _GAP + height // 2), "exact:", fill="black", font=font)
    for quality in range(90, 30, -5):
        stream = BytesIO()
        canvas.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= LIMIT:
            return stream.getvalue()
    raise ValueError(f"{entry.name}: no JPEG of {LIMIT} bytes or less; make PANEL smaller")


def _panel(values: Tensor) -> Image.Image:
    """(H,W,3) in [0,1] -> a picture that fits into PANEL."""
    image = Image.fromarray(values.mul(255).round().clamp(0, 255).byte().numpy())
    scale = min(PANEL[0] / image.width, PANEL[1] / image.height)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def page(entries: Sequence[Entry], predictor: GeometryPredictor, digest: str) -> str:
    """The document. Remarks are shown only for the checkpoint that they were written for."""
    height, width = predictor.info.height, predictor.info.width
    seen = digest.startswith(REMARKS_FOR)
    lines = [
        "# Gallery",
        "",
        f"Made by `python -m benchmarks.gallery` with `{predictor.info.name}` (SHA-256 {digest[:12]}..., trained at "
        f"{width}x{height} pixels), every picture in one pass at that size. It is the small demonstration model that comes "
        "with the pack and was trained on procedural scenes only; **the released FE2E model is another thing**.",
        "",
        "Depth is drawn from red (near) to blue (far) between each picture's percentiles; normals in OpenGL colours; clay "
        "is the normals alone under a lamp.",
        "",
        "## Photographs",
        "",
        "Nobody measured these, but anyone can say which of two things is nearer, what lies and what stands. Such places "
        "were written down for each photograph before any result was seen (`benchmarks/gallery_pictures.py`). Lying is a normal "
        "that points more than 30 degrees up in the picture, standing one that does less.",
        "",
    ]
    judged = [entry for entry in entries if entry.verdict is not None]
    lines += [*table([(entry.title, entry.verdict) for entry in judged]), ""]
    about = {item.name: item for item in PHOTOGRAPHS}
    for entry in judged:
        credit = about[entry.name]
        remark = f" {REMARKS[entry.name]}" if seen and entry.name in REMARKS else ""
        lines += [f"![{entry.title}](gallery/{entry.name}.jpg)", "", f"**{entry.title}.**{remark} {entry.verdict.sentence()}"]
        lines += [f"Photograph: {credit.author}, {credit.licence}, from {credit.source}.", ""]
    lines += ["## Procedural scenes", "", "The first ten held-out seeds, none left out. Below each estimate the exact answer.", ""]
    scenes = [entry for entry in entries if entry.error is not None]
    lines += ["| scene | AbsRel (log-aligned) | mean angle, degrees |", "|---|---:|---:|"]
    lines += [f"| {entry.title} | {entry.error[0]:.3f} | {entry.error[1]:.1f} |" for entry in scenes]
    lines += [""]
    if seen and "scenes" in REMARKS:
        lines += [REMARKS["scenes"], ""]
    for entry in scenes:
        lines += [f"![{entry.title}](gallery/{entry.name}.jpg)", ""]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make docs/gallery.md and its pictures.")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "fe2e-nano.safetensors")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of gallery.md (default: docs/)")
    parser.add_argument("--only", nargs="+", help="names of photographs, and scene-N; the page then holds only these")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("fe2e_core").setLevel(logging.WARNING)
    known = [item.name for item in PHOTOGRAPHS] + [f"scene-{number}" for number in range(SCENES)]
    unknown = sorted(set(arguments.only or ()) - set(known))
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} unknown; expected some of {', '.join(known)}")
    wanted = set(arguments.only or known)

    digest = hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest()
    predictor = GeometryPredictor(arguments.checkpoint)
    folder = arguments.output / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    makers = [(item.name, lambda item=item: photograph(predictor, item)) for item in PHOTOGRAPHS]
    makers += [(f"scene-{number}", lambda number=number: scene(predictor, number)) for number in range(SCENES)]
    for name, make in makers:
        if name not in wanted:
            continue
        entry = make()
        data = strip(entry)
        _write(folder / f"{name}.jpg", data)
        log.info("%s: %d bytes", name, len(data))
        entries.append(entry)
    _write(arguments.output / "gallery.md", page(entries, predictor, digest).encode())


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name("." + path.name)
    temporary.write_bytes(data)
    temporary.replace(path)


if __name__ == "__main__":
    main()
