"""Normals of datasets that publish none: planes fitted to depth in small windows.

The disparity 1/z of a plane is affine in the pixel's column and row, so one linear least-squares fit per
window gives the plane without error. Neighbours whose depth differs too much from the middle's are other
surfaces and do not count. Depth stored in steps (Virtual KITTI: 1 cm) makes small windows noisy where a pixel
covers little more than a step; there the same 7x7 samples are taken further apart, unless the surface turns
out to be curved."""

from __future__ import annotations

import numpy as np

_RADIUS = 3
_MIN_SAMPLES = 6
_SPREADS = (1, 2, 3, 5)
#: A wider window is one plane when its residual stays below this many deviations of the depth's steps.
_PLANAR = 1.5
#: Radians of slope noise, from the steps of the depth alone, above which a wider window is taken.
_ALLOWED_NOISE = np.radians(0.3)
#: Noise beyond which a normal is not worth learning from.
_USELESS_NOISE = np.radians(0.7)


def derive_normals(
    depth: np.ndarray, valid: np.ndarray, intrinsics: np.ndarray, threshold: float = 0.1, step: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit OpenCV normals (H,W,3) facing the camera, and the mask (H,W) of pixels where a plane was found
    that is not drowned in the steps of the depth.

    depth (H,W) planar, valid (H,W) bool, intrinsics (3,3) normalised. threshold: relative difference of depth
    to the window's middle beyond which a neighbour is another surface. step: of the stored depth, in its
    unit."""
    height, width = depth.shape
    fx, fy = intrinsics[0, 0] * width, intrinsics[1, 1] * height
    result = np.zeros((height, width, 3))
    found = np.zeros((height, width), dtype=bool)
    todo = valid.copy()
    for spread in _SPREADS:
        normal, fitted, noise, planar = _fit(
            depth.astype(np.float32), valid, intrinsics, fx, fy, threshold, step, spread
        )
        # a later, wider window replaces a noisy one where it sees one plane as well
        take = todo & fitted if spread == 1 else todo & fitted & planar
        result[take] = normal[take]
        found[take] = noise[take] <= _USELESS_NOISE
        todo = take & (noise > _ALLOWED_NOISE)
        if step == 0 or not todo.any():
            break
    return result.astype(np.float32), found


def _fit(
    depth: np.ndarray,
    valid: np.ndarray,
    intrinsics: np.ndarray,
    fx: float,
    fy: float,
    threshold: float,
    step: float,
    spread: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normals (H,W,3), where a plane was fitted, the slope noise (radians) that the steps of depth leave, and
    where the residual is no larger than those steps."""
    height, width = depth.shape
    safe = np.where(valid, depth, 1.0)
    reach = _RADIUS * spread
    padded = np.pad(safe, reach, constant_values=1.0)
    present = np.pad(valid, reach, constant_values=False)
    count = np.zeros_like(depth)
    sums = {key: np.zeros_like(depth) for key in ("x", "y", "xx", "xy", "yy", "d", "xd", "yd", "dd")}
    for j in range(-_RADIUS, _RADIUS + 1):
        for i in range(-_RADIUS, _RADIUS + 1):
            rows = slice(reach + j * spread, reach + j * spread + height)
            columns = slice(reach + i * spread, reach + i * spread + width)
            other = padded[rows, columns]
            weight = (present[rows, columns] & (np.abs(other - safe) <= threshold * safe)).astype(np.float32)
            # relative disparity, exactly 0 in the middle: nothing is lost where surfaces are far
            relative = weight * (safe / other - 1)
            x, y = i * spread, j * spread
            count += weight
            sums["x"] += weight * x
            sums["y"] += weight * y
            sums["xx"] += weight * (x * x)
            sums["xy"] += weight * (x * y)
            sums["yy"] += weight * (y * y)
            sums["d"] += relative
            sums["xd"] += relative * x
            sums["yd"] += relative * y
            sums["dd"] += relative * relative
    n = np.maximum(count, 1)
    xx = sums["xx"] - sums["x"] ** 2 / n
    yy = sums["yy"] - sums["y"] ** 2 / n
    xy = sums["xy"] - sums["x"] * sums["y"] / n
    xd = sums["xd"] - sums["x"] * sums["d"] / n
    yd = sums["yd"] - sums["y"] * sums["d"] / n
    determinant = xx * yy - xy * xy
    fitted = valid & (count >= _MIN_SAMPLES) & (determinant > 1e-6 * np.maximum(xx * yy, 1e-12))
    safe_determinant = np.where(fitted, determinant, 1)
    a = (yy * xd - xy * yd) / safe_determinant
    b = (xx * yd - xy * xd) / safe_determinant
    # 1 at the middle is replaced by the plane's value there, which averages the steps away
    c = 1 + (sums["d"] - a * sums["x"] - b * sums["y"]) / n
    u = np.arange(width) + 0.5 - intrinsics[0, 2] * width
    v = (np.arange(height) + 0.5 - intrinsics[1, 2] * height)[:, None]
    normal = -np.stack([fx * a, fy * b, c - u * a - v * b], axis=-1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    fitted &= np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    normal = normal / np.where(length > 0, length, 1)
    # a uniform error of one step has the deviation step / sqrt(12); slopes of depth per pixel -> angle
    spacing = safe / min(fx, fy)
    noise = step / np.sqrt(12) / np.sqrt(np.maximum(np.minimum(xx, yy), 1e-9)) / spacing
    residual = np.maximum(sums["dd"] - sums["d"] ** 2 / n - a * xd - b * yd, 0) / n
    planar = residual <= (_PLANAR * step / safe) ** 2 / 12
    return normal, fitted, noise, planar
