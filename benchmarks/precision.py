"""What lower precision does to depth steps and normals: every stage in every dtype against float32.

    python -m benchmarks.precision [--model models/fe2e-nano.safetensors] [--scenes 8] [--table table.md] [--picture docs/precision.png]

The VAE is decoded in a dtype on a ramp of depth labels (how many steps are left of it?) and on the network's own
latents; the transformer runs in a dtype with the VAE in float32. On a CPU there is no TF32; on a CUDA device the
row is measured.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.scenes import HELD_OUT, Scene, render_scene

RAMP = 1024
"""Pixels of the ramp from label -1 to 1."""


@dataclass(frozen=True)
class Steps:
    """A ramp after the VAE: distinct values among RAMP pixels, the longest run of one value in pixels, the largest
    step from one pixel to the next in label units (the whole range is 2)."""

    distinct: int
    run: int
    largest: float


def count_steps(row: Tensor) -> Steps:
    """Steps along one row of labels."""
    changes = (row[1:] != row[:-1]).nonzero().flatten()
    ends = torch.cat([torch.tensor([-1]), changes, torch.tensor([row.numel() - 1])])
    return Steps(row.unique().numel(), int(ends.diff().max()), float((row[1:] - row[:-1]).abs().max()))


@dataclass(frozen=True)
class Row:
    """One configuration: steps of the ramp (VAE rows only), root mean square distance of log-depth labels and mean
    angle of normals to the float32 run, mean errors against the truth; note: why numbers are missing."""

    name: str
    steps: Steps | None = None
    label_rms: float = float("nan")
    degrees: float = float("nan")
    true_log: float = float("nan")
    true_degrees: float = float("nan")
    note: str = ""


def ramp_picture() -> Tensor:
    """(1,32,RAMP,3) in [0,1], rising to the right."""
    return torch.linspace(0, 1, RAMP).view(1, 1, RAMP, 1).expand(1, 32, RAMP, 3).contiguous()


def decoder(model, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Decoding latents as ComfyUI would with a VAE of this dtype -> (B,H,W,3) float32 in [-1,1]."""
    network = copy.deepcopy(model.vae.first_stage_model).to(dtype)

    def decode(latent: Tensor) -> Tensor:
        given = model.patcher.model.process_latent_out(latent).to(model.vae.device, dtype)
        return network.to(model.vae.device).decode(given).float().clamp(-1, 1).movedim(1, -1).cpu()

    return decode


class Study:
    """Latents, results and truth of the scenes, computed once in float32."""

    def __init__(self, path: str, scenes: int) -> None:
        from tests.harness.inprocess import pack_module

        self.path = path
        self.backend, self.loading = pack_module("nodes.backend"), pack_module("nodes.loading")
        self.geometry, self.overflow = pack_module("fe2e_core.geometry"), pack_module("nodes.overflow")
        self.model = self.load("fp32")
        height, width = self.model.info.height, self.model.info.width
        self.scenes: list[Scene] = [render_scene(HELD_OUT + seed, height, width) for seed in range(scenes)]
        self.image_latent = self.backend.encode(self.model, torch.stack([s.image for s in self.scenes]))
        self.latents = self.backend.transform(self.model, self.image_latent)
        self.ramp = self.backend.encode(self.model, ramp_picture())
        self.exact = self.maps(self.latents, decoder(self.model, torch.float32))

    def load(self, dtype: str):
        return self.loading.load_checkpoint(self.path, None, 1.0, dtype)

    def maps(self, latents: tuple[Tensor, Tensor], decode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Labels (B,H,W) and OpenCV normals (B,H,W,3)."""
        depth, normal = (decode(latent) for latent in latents)
        return depth.mean(dim=-1), self.geometry.normal_from_network(normal)

    def row(self, name: str, latents: tuple[Tensor, Tensor], decode: Callable[[Tensor], Tensor],
            ramp: bool, note: str = "") -> Row:
        labels, normals = self.maps(latents, decode)
        if not bool(labels.isfinite().all()) or not bool(normals.isfinite().all()):
            return Row(name, note="NaN or infinite" + (f"; {note}" if note else ""))
        steps = count_steps(decode(self.ramp)[0, 16].mean(dim=-1)) if ramp else None
        true_log, true_degrees = self.against_truth(labels, normals)
        return Row(name, steps, float((labels - self.exact[0]).double().square().mean().sqrt()),
                   degrees(normals, self.exact[1]), true_log, true_degrees, note)

    def against_truth(self, labels: Tensor, normals: Tensor) -> tuple[float, float]:
        """Mean |log-depth error| after alignment, and mean angle, over valid pixels."""
        from benchmarks.tiling import align, log_truth

        logs, angles = 0.0, 0.0
        for label, normal, scene in zip(labels, normals, self.scenes, strict=True):
            truth = log_truth(scene)
            logs += float((align(label, truth, scene.mask) - truth)[scene.mask].abs().mean())
            angles += degrees(normal[scene.mask], scene.normal[scene.mask])
        return logs / len(self.scenes), angles / len(self.scenes)

    def vae_rows(self) -> list[Row]:
        rows = [self.row("VAE float32", self.latents, decoder(self.model, torch.float32), True)]
        if self.model.vae.device.type == "cuda":
            allowed = torch.backends.cudnn.allow_tf32
            for name, tf32 in (("VAE float32, TF32 off", False), ("VAE TF32", True)):
                torch.backends.cudnn.allow_tf32 = tf32
                rows.append(self.row(name, self.latents, decoder(self.model, torch.float32), True))
            torch.backends.cudnn.allow_tf32 = allowed
        else:
            rows.append(Row("VAE TF32", note="not measured: needs a CUDA device"))
        for dtype in (torch.bfloat16, torch.float16):
            name = f"VAE {str(dtype).removeprefix('torch.')}"
            try:
                rows.append(self.row(name, self.latents, decoder(self.model, dtype), True))
            except RuntimeError as error:
                rows.append(Row(name, note=f"not possible here: {str(error).splitlines()[0]}"))
        return rows

    def transformer_rows(self) -> list[Row]:
        plain = decoder(self.model, torch.float32)
        rows = []
        for name, weights, compute in (
            ("DiT bf16 weights, float32 compute", "bf16", torch.float32),
            ("DiT bf16", "bf16", torch.bfloat16),
            ("DiT fp16", "fp16", torch.float16),
            ("DiT fp8 (e4m3, scaled), float32 compute", "fp8_e4m3fn", torch.float32),
            ("DiT fp8 (e4m3, scaled), bf16 compute", "fp8_e4m3fn", torch.bfloat16),
        ):
            model = self.load(weights)
            model.patcher.set_model_compute_dtype(compute)
            with self.overflow.watch(model.patcher) as seen:
                latents = self.backend.transform(model, self.image_latent)
            note = "overflows; the node goes on in a wider dtype" if seen.overflowed() else ""
            rows.append(self.row(name, latents, plain, False, note))
        return rows

    def banding_picture(self, path: Path) -> None:
        """The smoothest scene's depth as contour colours, and the ramp, decoded in each dtype."""
        from PIL import Image

        strips = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            try:
                decode = decoder(self.model, dtype)
                ramp = decode(self.ramp)[0, :, 384:640].mean(dim=-1)
                labels = self.maps(self.latents, decode)[0][0]
            except RuntimeError:
                continue
            # Sawtooth of 1/40 of the range: steps of equal value become visible stripes.
            parts = [torch.nn.functional.interpolate(((x * 20) % 1)[None, None], (240, 320), mode="nearest")[0, 0]
                     for x in (labels, ramp)]
            strips.append(torch.cat(parts, dim=1))
        sheet = torch.cat(strips, dim=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((sheet * 255).byte().numpy()).save(path)


def degrees(a: Tensor, b: Tensor) -> float:
    """Mean angle between unit vectors; the stable formula, for small angles matter here."""
    angle = 2 * torch.atan2((a - b).double().norm(dim=-1), (a + b).double().norm(dim=-1))
    return float(torch.rad2deg(angle).mean())


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| | steps of the ramp | longest run (px) | largest step | label RMS to float32 | normals to float32 (deg) | "
             "log-depth error | normal error (deg) | |", "|---|---|---|---|---|---|---|---|---|"]

    def number(value: float, form: str) -> str:
        return "" if value != value else format(value, form)

    for row in rows:
        steps = [str(row.steps.distinct), str(row.steps.run), f"{row.steps.largest:.5f}"] if row.steps else ["", "", ""]
        lines.append("| " + " | ".join([row.name, *steps, number(row.label_rms, ".2e"), number(row.degrees, ".4f"),
                                        number(row.true_log, ".5f"), number(row.true_degrees, ".3f"), row.note]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/fe2e-nano.safetensors", help="an FE2E checkpoint")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--table", type=Path, help="write the table into this file")
    parser.add_argument("--picture", type=Path, help="draw the banding picture here")
    options = parser.parse_args()
    with torch.inference_mode():
        study = Study(options.model, options.scenes)
        text = table(study.vae_rows() + study.transformer_rows())
        if options.picture:
            study.banding_picture(options.picture)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
