"""A depth map with normals, summarised as small planar patches.

Differences of neighbouring pixels are useless for measuring: a BF16 label changes in steps that are larger
than the slope from one pixel to the next. On a plane the disparity is affine in pixel coordinates, so one
least-squares fit over a patch of hundreds of pixels gives its slope with a small, known error, and the
average of the normals over the same pixels loses most of their independent noise. What remains is a short
list of patches to reason about.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

_SLOPE_NOISE = (
    1.2e-3  # spread of BF16's rounding error in the outer half of the label's range (one step is 2^-8)
)


@dataclass(frozen=True)
class PlanePatches:
    """N planar patches; lengths in the picture plane are in units of the picture's width, y down.

    `frame` (N,) picture index; `block` (N,) index of the neighbourhood, for errors that patches share, the
    same at the same place of every frame;
    `centre` (N, 2) weighted centre from the top left corner; `label` (N,) log-depth label at the centre;
    `slope` (N, 2) its derivative there; `slope_error` (N, 2, 2) covariance; `normal` (N, 3) unit OpenCV
    normal; `weight` (N,) share of the patch's pixels in use, 0 to 1; `pixels` (N,) their number;
    `roughness` (N,) spread of the label about the fit.
    """

    frame: Tensor
    block: Tensor
    centre: Tensor
    label: Tensor
    slope: Tensor
    slope_error: Tensor
    normal: Tensor
    weight: Tensor
    pixels: Tensor
    roughness: Tensor

    def __len__(self) -> int:
        return self.frame.shape[0]

    def take(self, index: Tensor) -> PlanePatches:
        """The patches of an index or mask."""
        return PlanePatches(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def cat(parts: list[PlanePatches]) -> PlanePatches:
        """All patches of a non-empty list."""
        return PlanePatches(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PlanePatches)))


def tile_size(height: int, width: int) -> int:
    """Patch side in pixels for a picture: 1/32 of the longer side, but never under 8 pixels."""
    return max(8, round(max(height, width) / 32))


def plane_patches(
    log_depth: Tensor,
    normal: Tensor,
    mask: Tensor,
    half_range: float,
    tile: int,
    frame: int = 0,
    stride: int = 1,
) -> PlanePatches:
    """Fit one plane to each tile of one picture.

    Args:
        log_depth (H, W): the label; normal (H, W, 3): unit OpenCV; mask (H, W) bool.
        half_range: number, half of the log range assumed: disparity is exp(-half_range * label). Any rough
        value
            gives slopes good to a percent; the right value makes planes exact.
        tile: side in pixels. stride: use every stride-th pixel of a tile.
    Tiles with two surfaces keep the one with more pixels; tiles with less than a quarter usable pixels are
    dropped.
    """
    height, width = log_depth.shape
    rows, cols = height // tile, width // tile
    if rows < 1 or cols < 1:
        raise ValueError(f"log_depth: found {height} x {width}, expected at least one tile of {tile} pixels.")
    top, left = (height - rows * tile) // 2, (width - cols * tile) // 2

    def tiles(x: Tensor) -> Tensor:
        x = x[top : top + rows * tile, left : left + cols * tile]
        x = x.reshape(rows, tile, cols, tile, -1)[:, ::stride, :, ::stride]
        return x.permute(0, 2, 1, 3, 4).reshape(rows * cols, -1, x.shape[-1])

    y = tiles(log_depth.float()).squeeze(-1)
    n = tiles(normal.float())
    w = tiles(mask.float()).squeeze(-1)
    w = torch.where(torch.isfinite(y), w, 0.0)
    y = torch.where(w > 0, y, 0.0)
    offset = (torch.arange(0, tile, stride, dtype=torch.float32, device=y.device) + 0.5 - tile / 2) / width
    dv, du = (g.reshape(1, -1) for g in torch.meshgrid(offset, offset, indexing="ij"))

    keep = w.mean(1) > 0.25
    index = torch.nonzero(keep)[:, 0]
    y, n, valid = y[keep], n[keep], w[keep]
    # The surface with the most pixels: the mean normal, drawn to the densest direction by ever narrower
    # weights.
    w = valid
    for reach in (0.8, 0.5, 0.35, 0.25):
        mean = torch.nn.functional.normalize((w[..., None] * n).sum(1), dim=-1)
        angle = 2 - 2 * (n @ mean[..., None]).squeeze(-1)
        w = valid * torch.exp(-angle / (2 * reach * reach))
    similar = w
    reference = (w * y).sum(1) / w.sum(1).clamp_min(1e-6)
    q = torch.exp((-half_range * (y - reference[:, None])).clamp(-8, 8))
    # Robust affine fit of the disparity over those pixels.
    for step in range(4):
        total = w.sum(1, keepdim=True).clamp_min(1e-6)
        cu, cv, cq = ((w * x).sum(1, keepdim=True) / total for x in (du, dv, q))
        xu, xv, xq = du - cu, dv - cv, q - cq
        suu, suv, svv = (w * xu * xu).sum(1), (w * xu * xv).sum(1), (w * xv * xv).sum(1)
        squ, sqv = (w * xu * xq).sum(1), (w * xv * xq).sum(1)
        det = (suu * svv - suv * suv).clamp_min(1e-20)
        au, av = (squ * svv - sqv * suv) / det, (sqv * suu - squ * suv) / det
        residual = (xq - au[:, None] * xu - av[:, None] * xv) / (half_range * cq.clamp_min(1e-4))
        spread = ((w * residual * residual).sum(1) / total[:, 0]).sqrt()
        if step < 3:
            limit = (3 * spread[:, None]).clamp(min=4 * _SLOPE_NOISE)
            w = similar * (1 - (residual / limit) ** 2).clamp_min(0) ** 2
    total, cq = total[:, 0], cq[:, 0].clamp_min(1e-4)
    slope = -torch.stack([au, av], -1) / (half_range * cq[:, None])
    moment = torch.stack([torch.stack([suu, suv], -1), torch.stack([suv, svv], -1)], -2)
    # Rounding errors are shared along the level lines of the label, so a patch has about as many
    # independent ones as it has rows, not pixels.
    shared = (tile / stride) * (spread.clamp_min(_SLOPE_NOISE) ** 2)
    error = torch.linalg.pinv(moment.cpu().double(), hermitian=True).to(moment) * shared[:, None, None]
    mean = torch.nn.functional.normalize((w[..., None] * n).sum(1), dim=-1)
    row, col = index // cols, index % cols
    centre = torch.stack(
        [
            (left + (col + 0.5) * tile) / width + cu[:, 0],
            (top + (row + 0.5) * tile) / width + cv[:, 0],
        ],
        -1,
    )
    per_block = max(1, round(max(rows, cols) / 6))
    blocks = (row // per_block) * (cols + 1) + col // per_block
    count = float(y.shape[1])
    # A few hundred rows: solving is done on the CPU in float64, which some devices lack.
    patches = PlanePatches(
        frame=torch.full_like(index, frame).cpu(),
        block=blocks.cpu(),
        centre=centre.cpu().double(),
        label=(reference - torch.log(cq) / half_range).cpu().double(),
        slope=slope.cpu().double(),
        slope_error=error.cpu().double(),
        normal=mean.cpu().double(),
        weight=(total / count).cpu().double(),
        pixels=(total * stride * stride).cpu().double(),
        roughness=spread.cpu().double(),
    )
    good = (
        (patches.weight > 0.25)
        & torch.isfinite(patches.slope).all(-1)
        & torch.isfinite(patches.normal).all(-1)
    )
    return patches.take(good)
