"""Normals of depth that is stored in steps (Virtual KITTI: 1 cm), and which of them are within two degrees.

The disparity 1/z of a plane is affine in the pixel's column and row; that of any surface is nearly quadratic
in a small window. So a quadratic is fitted in square windows of nine sizes, and each fit comes with a bound of
its normal's error, from the data alone:

- what the rounding to steps leaves. Rounding errors are not random: where a surface rises by nearly a whole step,
  half a step, ... from pixel to pixel they lie like another plane. Their sawtooth's harmonics say how much.
- what a crease would leave: a window that lies across one bends. A smooth surface bends as well, but half as much in
  half the window; a crease as much in every one.
- a window whose residual is larger than the steps explain sees more than one surface and does not count, and neither
  does one that a jump of depth or a pixel without depth lies in.

A pixel takes the window with the least bound, one around it or one that it lies beside the middle of, and is vouched
for where that is below two degrees. Nothing is known of surfaces finer than that: a ripple of less than a step is
not seen at all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

#: Radians of error that a vouched normal may have.
LIMIT = np.radians(2)
_RADII = (2, 3, 4, 6, 9, 13, 18, 26, 37)
#: How many sizes up the window is that tells a smooth surface from a crease.
_WIDER = 2
_HARMONICS = 6
#: A window sees one surface when its residual's variance is at most this many times that of the steps.
_RESIDUAL = 1.4
#: Deviations of the evenly spread part of the steps' error.
_DEVIATIONS = 1.5
#: Share of a crease's bend in the middle of its window that is error of the normal there: 1 / 1.9, and some more.
_CREASE = 0.6
#: The same of the difference of the bends in two sizes, and of a bend that both sizes agree in.
_DIFFERENCE, _SMOOTH = 0.8, 0.05
#: A pixel half way to the window's rim may lie beyond a crease: error for the window's bend, and noise of that to add.
_BESIDE, _BEND_NOISE = 2.0, 0.5


@dataclass(frozen=True)
class _Fit:
    """Windows of one size around every pixel; arrays (H,W) and in radians.

    whole: the window lies in the picture and sees one surface. normal (H,W,3). rounding: bound of what the steps
    leave. bend: between the middle and the rim; bend_noise: its deviation. curvature: second derivatives of the
    disparity (xx, xy, yy); metric: squared radians for a change of its slopes (aa, ab, bb)."""

    radius: int
    whole: np.ndarray
    normal: np.ndarray
    rounding: np.ndarray
    bend: np.ndarray
    bend_noise: np.ndarray
    curvature: tuple[np.ndarray, np.ndarray, np.ndarray]
    metric: tuple[np.ndarray, np.ndarray, np.ndarray]


def vouched_normals(
    depth: np.ndarray, valid: np.ndarray, intrinsics: np.ndarray, threshold: float, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Unit OpenCV normals (H,W,3) facing the camera, float32, and the mask (H,W) of those that are vouched for.

    depth (H,W) planar, valid (H,W) bool, intrinsics (3,3) normalised. threshold: relative difference of depth
    beyond which neighbours are other surfaces. step > 0: of the stored depth, in its unit."""
    height, width = depth.shape
    disparity = np.where(valid, 1 / np.where(valid, depth.astype(np.float64), 1), 0)
    barrier = _barrier(depth, valid, threshold)
    radii = [radius for radius in _RADII if 2 * radius < min(height, width)]
    fits = [_fit(disparity, barrier, intrinsics, step, radius) for radius in radii]
    bound = np.full((height, width), np.inf, dtype=np.float32)
    normal = np.zeros((height, width, 3), dtype=np.float32)
    for fit, wider in zip(fits, [*fits[_WIDER:], *[None] * _WIDER], strict=False):
        around = np.where(fit.whole, fit.rounding + _crease(fit, wider), np.inf)
        beside = fit.rounding + _BESIDE * (fit.bend + _BEND_NOISE * fit.bend_noise)
        beside = np.where(fit.whole, beside, np.inf)
        for y, x in product((0, -1, 1), repeat=2):
            here, there = _shifted(height, y * (fit.radius // 2)), _shifted(width, x * (fit.radius // 2))
            middle, pixel = (here[0], there[0]), (here[1], there[1])
            offered = around if x == y == 0 else beside[middle]
            better = offered < bound[pixel]
            bound[pixel][better] = offered[better]
            normal[pixel][better] = fit.normal[middle][better]
    return normal, (bound <= LIMIT) & valid


def _shifted(size: int, by: int) -> tuple[slice, slice]:
    """Slices of an axis: of windows' middles, and of the pixels that lie `by` further."""
    return slice(max(-by, 0), size - max(by, 0)), slice(max(by, 0), size - max(-by, 0))


def _barrier(depth: np.ndarray, valid: np.ndarray, threshold: float) -> np.ndarray:
    """(H,W) float32, 1 for pixels that no window may contain: without depth, or on either side of a jump."""
    barrier = ~valid
    for first, second in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        a, b = depth[first], depth[second]
        jump = np.abs(a - b) > threshold * np.minimum(a, b)
        barrier[first] |= jump
        barrier[second] |= jump
    return barrier.astype(np.float32)


def _fit(
    disparity: np.ndarray, barrier: np.ndarray, intrinsics: np.ndarray, step: float, radius: int
) -> _Fit:
    height, width = disparity.shape
    side = 2 * radius + 1
    count = side * side
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    one = np.full(side, 1 / side)
    # moments of the window; the quadratic's terms 1, x, y, x^2 - second, xy, y^2 - second are orthogonal there
    second = (x * x).mean()
    spread = (x**4).mean() - second**2

    def project(columns: np.ndarray, rows: np.ndarray, of: np.ndarray = disparity) -> np.ndarray:
        return cv2.sepFilter2D(of, cv2.CV_64F, columns, rows, borderType=cv2.BORDER_CONSTANT)

    linear, square = x / (side * second), (x * x - second) / (side * spread)
    mean = project(one, one)
    a, b = project(linear, one), project(one, linear)
    xx, xy, yy = project(square, one), project(linear, linear), project(one, square)
    residual = project(one, one, disparity * disparity) - mean**2
    residual -= (a * a + b * b) * second + (xx * xx + yy * yy) * spread + (xy * second) ** 2
    middle = mean - second * (xx + yy)
    whole = cv2.boxFilter(barrier, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT) < 0.5
    whole[:radius] = whole[height - radius :] = False
    whole[:, :radius] = whole[:, width - radius :] = False
    whole &= middle > 0
    # one step of depth as a difference of disparity
    unit = step * np.where(whole, middle, 1) ** 2
    whole &= residual * (count / (count - 6)) <= _RESIDUAL * unit**2 / 12

    a, b, middle, unit = (array.astype(np.float32) for array in (a, b, middle, unit))
    curvature = (2 * xx).astype(np.float32), xy.astype(np.float32), (2 * yy).astype(np.float32)
    fx, fy = np.float32(intrinsics[0, 0] * width), np.float32(intrinsics[1, 1] * height)
    u = (np.arange(width) + 0.5 - intrinsics[0, 2] * width).astype(np.float32)
    v = (np.arange(height) + 0.5 - intrinsics[1, 2] * height).astype(np.float32)[:, None]
    nx, ny, nz = fx * a, fy * b, middle - u * a - v * b
    squared = np.where(whole, nx * nx + ny * ny + nz * nz, 1)
    normal = -np.stack([nx, ny, nz], axis=-1) / np.sqrt(squared)[..., None]
    # the slopes a, b move the normal along (fx, 0, -u) and (0, fy, -v); only what is across it turns it
    along_a, along_b = fx * nx - u * nz, fy * ny - v * nz
    aa = np.maximum(fx * fx + u * u - along_a**2 / squared, 0) / squared
    bb = np.maximum(fy * fy + v * v - along_b**2 / squared, 0) / squared
    ab = (u * v - along_a * along_b / squared) / squared
    spread_out = _DEVIATIONS * unit * np.sqrt((aa + bb) / (12 * count * second))
    in_a, in_b = _aliases(a / unit, b / unit, radius)
    rounding = spread_out + unit * np.sqrt(aa * in_a**2 + bb * in_b**2)
    bend_noise = radius * unit * np.sqrt((aa + bb) * (4 / spread + 1 / second**2) / (12 * count))
    metric = aa, ab, bb
    return _Fit(radius, whole, normal, rounding, _turn(radius, metric, curvature), bend_noise, curvature, metric)


def _aliases(a: np.ndarray, b: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the slopes, in steps a pixel, that rounding adds to a plane of slopes a, b in steps a pixel.

    The rounding error is a sawtooth of the depth: sines of 1 / (pi k) for k = 1, 2, ... periods a step. Over the
    pixels a sine of whole periods a pixel is a constant, and one of nearly whole ones a slow wave. A least-squares slope
    answers a wave of f periods a pixel with at most 1.31 / R, from f = 0.35 / R on with 3 / (2 pi R^2 f), and averages
    the other axis' wave to 1 / (2 pi R f). Below the first peaks the slopes are not known well enough to take less. An
    error of half a step with the sign that hurts most in every pixel is the worst that there is."""
    in_a, in_b = np.zeros_like(a), np.zeros_like(b)
    for k in range(1, _HARMONICS + 1):
        fa, fb = (np.maximum(np.abs(k * slope - np.rint(k * slope)), 1e-6) * radius for slope in (a, b))
        in_a += np.minimum(1.31, 0.48 / fa) * np.minimum(1, 0.16 / fb) / (np.pi * k * radius)
        in_b += np.minimum(1.31, 0.48 / fb) * np.minimum(1, 0.16 / fa) / (np.pi * k * radius)
    worst = 1.5 / (2 * radius + 1)
    return np.minimum(in_a, worst), np.minimum(in_b, worst)


def _turn(radius: int, metric: tuple[np.ndarray, ...], curvature: tuple[np.ndarray, ...]) -> np.ndarray:
    """Radians that the normal turns over `radius` pixels, in all directions together."""
    (aa, ab, bb), (xx, xy, yy) = metric, curvature
    squared = aa * (xx * xx + xy * xy) + bb * (yy * yy + xy * xy) + 2 * ab * xy * (xx + yy)
    return radius * np.sqrt(np.maximum(squared, 0))


def _crease(fit: _Fit, wider: _Fit | None) -> np.ndarray:
    """(H,W) radians that the normal may be wrong because a crease lies in the window.

    A crease bends every window by the same, so its curvature is less in a wider one; a smooth surface has the same
    curvature in both. There is a distance of a crease at which both agree, so the neighbourhood is asked as well."""
    bound = _CREASE * fit.bend
    if wider is None:
        return bound
    difference = [here - there for here, there in zip(fit.curvature, wider.curvature, strict=True)]
    turn = np.where(fit.whole & wider.whole, _turn(fit.radius, fit.metric, tuple(difference)), np.inf)
    side = 2 * max(1, round(fit.radius / 4)) + 1
    turn = cv2.dilate(turn.astype(np.float32), np.ones((side, side), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.minimum(bound, _DIFFERENCE * turn + _SMOOTH * fit.bend)
