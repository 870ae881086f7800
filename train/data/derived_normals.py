"""Normals of datasets that publish none: planes fitted to depth in small windows.

The disparity 1/z of a plane is affine in the pixel's column and row, so one linear least-squares fit per
window gives the plane without error. Neighbours whose depth differs too much from the middle's are other
surfaces and do not count. Depth stored in steps makes small windows noisy: `vouched_normals` is for that."""

from __future__ import annotations

import numpy as np

from train.data.vouched_normals import vouched_normals

_RADIUS = 3
_MIN_SAMPLES = 6


def derive_normals(
    depth: np.ndarray, valid: np.ndarray, intrinsics: np.ndarray, threshold: float = 0.1, step: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit OpenCV normals (H,W,3) facing the camera, and the mask (H,W) of pixels where a plane was found; of
    depth in steps, where the normal is within two degrees.

    depth (H,W) planar, valid (H,W) bool, intrinsics (3,3) normalised. threshold: relative difference of depth
    beyond which neighbours are other surfaces. step: of the stored depth, in its unit; 0 for floats."""
    if step > 0:
        return vouched_normals(depth, valid, intrinsics, threshold, step)
    height, width = depth.shape
    fx, fy = intrinsics[0, 0] * width, intrinsics[1, 1] * height
    depth = depth.astype(np.float32)
    safe = np.where(valid, depth, 1.0)
    padded = np.pad(safe, _RADIUS, constant_values=1.0)
    present = np.pad(valid, _RADIUS, constant_values=False)
    count = np.zeros_like(depth)
    sums = {key: np.zeros_like(depth) for key in ("x", "y", "xx", "xy", "yy", "d", "xd", "yd")}
    for y in range(-_RADIUS, _RADIUS + 1):
        for x in range(-_RADIUS, _RADIUS + 1):
            rows = slice(_RADIUS + y, _RADIUS + y + height)
            columns = slice(_RADIUS + x, _RADIUS + x + width)
            other = padded[rows, columns]
            weight = (present[rows, columns] & (np.abs(other - safe) <= threshold * safe)).astype(np.float32)
            # relative disparity, exactly 0 in the middle: nothing is lost where surfaces are far
            relative = weight * (safe / other - 1)
            count += weight
            sums["x"] += weight * x
            sums["y"] += weight * y
            sums["xx"] += weight * (x * x)
            sums["xy"] += weight * (x * y)
            sums["yy"] += weight * (y * y)
            sums["d"] += relative
            sums["xd"] += relative * x
            sums["yd"] += relative * y
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
    # 1 at the middle is replaced by the plane's value there, which averages noise away
    c = 1 + (sums["d"] - a * sums["x"] - b * sums["y"]) / n
    u = np.arange(width) + 0.5 - intrinsics[0, 2] * width
    v = (np.arange(height) + 0.5 - intrinsics[1, 2] * height)[:, None]
    normal = -np.stack([fx * a, fy * b, c - u * a - v * b], axis=-1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    fitted &= np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    return (normal / np.where(length > 0, length, 1)).astype(np.float32), fitted
