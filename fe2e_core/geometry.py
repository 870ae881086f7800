"""Axis conventions, cameras, points and normals, in one place.

Everything public speaks OpenCV camera axes: x right, y down, z forward, so a wall that faces the camera has
the normal (0, 0, -1). Depth is the coordinate along the optical axis (planar z), positive, not the distance
to the lens. Cameras are (3, 3) or (B, 3, 3) matrices normalised by the picture's width (first row) and
height (second row), with pixel centres at ((i + 0.5) / W, (j + 0.5) / H). Field of view is horizontal and
in degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Sign triples applied to the OpenCV vector before colour = (n + 1) / 2. NormalBae and DSINE, both by the
# same author, write (n + 1) / 2 of x left, y up, z toward the camera (read in controlnet_aux NormalBae,
# which adds no flip of its own, and in DSINE's depth-to-normal, whose facing wall is (0, 0, 1) in OpenCV
# points): one convention, so one entry.
NORMAL_CONVENTIONS: dict[str, tuple[int, int, int]] = {
    "OpenGL": (1, -1, -1),
    "DirectX": (1, 1, -1),
    "OpenCV": (1, 1, 1),
    "DSINE / BAE": (-1, -1, -1),
}


def _unit(vectors: Tensor) -> Tensor:
    """Unit vectors (..., 3); vectors without a direction become the facing wall (0, 0, -1)."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    usable = (length > 1e-8) & torch.isfinite(length)
    facing = torch.zeros_like(vectors)
    facing[..., 2] = -1.0
    return torch.where(usable, vectors / torch.where(usable, length, torch.ones_like(length)), facing)


def normal_from_network(normal: Tensor) -> Tensor:
    """Network normals (..., 3) (x left, y up, z toward the camera) to unit OpenCV normals; zero becomes (0,
    0, -1).
    """
    _require_vectors(normal, "normal")
    return _unit(-normal)


def normal_to_network(normal: Tensor) -> Tensor:
    """OpenCV normals (..., 3) to the network's unit vectors (x left, y up, z toward the camera)."""
    _require_vectors(normal, "normal")
    return -_unit(normal)


def _signs(convention: str, like: Tensor) -> Tensor:
    if convention not in NORMAL_CONVENTIONS:
        raise ValueError(
            f"convention: unknown normal convention {convention!r}; expected one of {', '.join(NORMAL_CONVENTIONS)}."
        )
    return torch.tensor(NORMAL_CONVENTIONS[convention], dtype=like.dtype, device=like.device)


def encode_normal(normal: Tensor, convention: str) -> Tensor:
    """OpenCV normals (..., 3) to colours in [0, 1] in a named convention. Raises ValueError for an unknown
    name.
    """
    _require_vectors(normal, "normal")
    return ((_unit(normal) * _signs(convention, normal) + 1.0) * 0.5).clamp(0.0, 1.0)


def decode_normal(colours: Tensor, convention: str) -> Tensor:
    """Colours (..., 3) in [0, 1] of a named convention to unit OpenCV normals; mid-grey becomes (0, 0, -1)."""
    _require_vectors(colours, "colours")
    return _unit((colours * 2.0 - 1.0) * _signs(convention, colours))


def y_up_from_opencv(vectors: Tensor) -> Tensor:
    """OpenCV points or normals (..., 3) to x right, y up, camera looking along -z; its own inverse.

    glTF, Blender's cameras, Nuke and three.js use these axes. It is half a turn about x, not a mirror:
    triangles keep their winding and normals their side.
    """
    _require_vectors(vectors, "vectors")
    return vectors * vectors.new_tensor([1.0, -1.0, -1.0])


def focal_from_fov(fov_x_degrees: float | Tensor) -> float | Tensor:
    """Focal length in units of the picture's width: 0.5 / tan(fov / 2). Raises ValueError outside (0, 180)
    degrees.
    """
    if isinstance(fov_x_degrees, Tensor):
        if not bool(((fov_x_degrees > 0) & (fov_x_degrees < 180)).all()):
            raise ValueError(
                f"fov_x_degrees: found {fov_x_degrees.tolist()}, expected values between 0 and 180 degrees."
            )
        return 0.5 / torch.tan(torch.deg2rad(fov_x_degrees) / 2)
    if not 0 < fov_x_degrees < 180:
        raise ValueError(f"fov_x_degrees: found {fov_x_degrees}, expected a value between 0 and 180 degrees.")
    return 0.5 / math.tan(math.radians(fov_x_degrees) / 2)


def fov_from_focal(fx: float | Tensor) -> float | Tensor:
    """Horizontal field of view in degrees of a focal length in units of the width. Raises ValueError if not
    > 0.
    """
    if isinstance(fx, Tensor):
        if not bool((fx > 0).all()):
            raise ValueError(f"fx: found {fx.tolist()}, expected positive focal lengths.")
        return torch.rad2deg(2 * torch.atan(0.5 / fx))
    if not fx > 0:
        raise ValueError(f"fx: found {fx}, expected a positive focal length.")
    return math.degrees(2 * math.atan(0.5 / fx))


def fov_from_equivalent_focal(focal_mm: float, height: int, width: int) -> float:
    """Horizontal field of view in degrees of a 35 mm-equivalent focal length (equal diagonals: 43.27 mm)."""
    if not focal_mm > 0:
        raise ValueError(f"focal_mm: found {focal_mm}, expected a positive focal length in millimetres.")
    return fov_from_focal(focal_mm / math.hypot(36, 24) * math.hypot(width, height) / width)


def fov_from_vertical(fov_y_degrees: float, height: int, width: int) -> float:
    """Horizontal field of view in degrees of a vertical one, square pixels."""
    return fov_from_focal(focal_from_fov(fov_y_degrees) * height / width)


def intrinsics_from_fov(
    fov_x_degrees: float | Tensor, height: int, width: int, cx: float = 0.5, cy: float = 0.5
) -> Tensor:
    """Normalised intrinsics of square pixels, float32: (3, 3), or (B, 3, 3) for a field of view of shape
    (B,).

    Args: horizontal field of view in degrees; picture size in pixels; principal point in fractions of the
    picture.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"height, width: found {height} x {width}, expected a picture of at least one pixel."
        )
    fx = torch.as_tensor(focal_from_fov(fov_x_degrees), dtype=torch.float32)
    k = torch.zeros(*fx.shape, 3, 3, dtype=torch.float32, device=fx.device)
    k[..., 0, 0] = fx
    k[..., 1, 1] = fx * (width / height)
    k[..., 0, 2] = cx
    k[..., 1, 2] = cy
    k[..., 2, 2] = 1.0
    return k


def pixel_rays(height: int, width: int, intrinsics: Tensor) -> Tensor:
    """Rays through the pixel centres scaled to z = 1: (H, W, 3) for (3, 3) intrinsics, (B, H, W, 3) for (B,
    3, 3).
    """
    require_intrinsics(intrinsics)
    k = intrinsics if intrinsics.is_floating_point() else intrinsics.float()
    u = (torch.arange(width, dtype=k.dtype, device=k.device) + 0.5) / width
    v = (torch.arange(height, dtype=k.dtype, device=k.device) + 0.5) / height
    fx, fy, cx, cy = (k[..., i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x = ((u - cx) / fx).unsqueeze(-2).expand(*k.shape[:-2], height, width)
    y = ((v - cy) / fy).unsqueeze(-1).expand(*k.shape[:-2], height, width)
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _per_picture(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """A number or one value per picture, shaped to broadcast over (..., H, W)."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.ndim == 0 or tensor.numel() == 1:
        return tensor.reshape(())
    if like.ndim != 3 or tensor.shape != like.shape[:1]:
        raise ValueError(
            f"{name}: found shape {tuple(tensor.shape)} for pictures of shape {tuple(like.shape)}; "
            "expected one number, or one per picture of a (B, H, W) batch."
        )
    return tensor[:, None, None]


def depth_from_log(log_depth: Tensor, log_range: float | Tensor, log_near: float | Tensor = 0.0) -> Tensor:
    """Depth of Eq. 7's label: ln depth = log_range * (log_depth + 1) / 2 + log_near.

    Args: log_depth (B, H, W) or (H, W), larger is farther; log_range = ln(far / near) and log_near, numbers
    or (B,). Without log_near the depth is in units of the near plane (the 2 % percentile).
    """
    s = _per_picture(log_range, log_depth, "log_range")
    return torch.exp(s * (log_depth + 1) * 0.5 + _per_picture(log_near, log_depth, "log_near"))


def log_from_depth(depth: Tensor, log_range: float | Tensor, log_near: float | Tensor = 0.0) -> Tensor:
    """Inverse of depth_from_log: positive depth (B, H, W) or (H, W) to the label. Raises ValueError for a
    zero range.
    """
    s = _per_picture(log_range, depth, "log_range")
    if bool((s == 0).any()):
        raise ValueError("log_range: found 0, expected ln(far / near) of two different distances.")
    return 2 * (torch.log(depth) - _per_picture(log_near, depth, "log_near")) / s - 1


def distance_to_depth(distance: Tensor, intrinsics: Tensor) -> Tensor:
    """Distance to the camera's centre (B, H, W) or (H, W) to depth along the optical axis, same shape."""
    rays = pixel_rays(distance.shape[-2], distance.shape[-1], intrinsics)
    return distance / torch.linalg.vector_norm(rays, dim=-1).to(distance)


def points_from_depth(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Depth (B, H, W) or (H, W) to OpenCV camera points (..., 3), in the unit of the depth."""
    rays = pixel_rays(depth.shape[-2], depth.shape[-1], intrinsics).to(depth)
    return rays * depth.unsqueeze(-1)


def normals_from_depth(depth: Tensor, intrinsics: Tensor, mask: Tensor | None = None) -> Tensor:
    """Unit OpenCV normals (..., 3) of a depth map (B, H, W) or (H, W), facing the camera (n . ray < 0).

    The disparity 1 / z of a plane is affine in pixel coordinates, so the plane's normal follows from the
    differences of the disparity without error: n ~ (fx d_u, fy d_v, d - u d_u - v d_v), u and v from the
    principal point. At each pixel the least curved of the central, forward and backward stencils is used,
    so that silhouettes and creases do not mix two surfaces. Pixels without a usable neighbour get (0, 0,
    -1).
    """
    height, width = depth.shape[-2:]
    require_intrinsics(intrinsics)
    valid = torch.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid = valid & mask
    # float64: neighbouring disparities of a distant wall differ in their last float32 digits
    disparity = torch.where(valid, 1.0 / torch.where(valid, depth, torch.ones_like(depth)).double(), 0.0)
    d_u = _least_curved_slope(disparity, valid)
    d_v = _least_curved_slope(disparity.transpose(-1, -2), valid.transpose(-1, -2)).transpose(-1, -2)
    k = intrinsics.double().to(depth.device)
    fx, fy, cx, cy = (k[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    u = torch.arange(width, device=depth.device, dtype=torch.float64) + 0.5
    v = (torch.arange(height, device=depth.device, dtype=torch.float64) + 0.5)[:, None]
    gradient = torch.stack(
        [fx * width * d_u, fy * height * d_v, disparity - (u - cx * width) * d_u - (v - cy * height) * d_v],
        dim=-1,
    )
    gradient = torch.where(
        torch.isfinite(gradient).all(-1, keepdim=True), gradient, torch.zeros_like(gradient)
    )
    # n . ray is proportional to -disparity, hence always toward the camera
    return _unit(-gradient).to(depth.dtype if depth.is_floating_point() else torch.float32)


def _least_curved_slope(values: Tensor, valid: Tensor) -> Tensor:
    """Slope along the last axis from the least curved valid stencil; nan where a pixel has no valid
    neighbour.
    """
    infinite = torch.full_like(values, math.inf)

    def shifted(x: Tensor, by: int, fill: float | bool) -> Tensor:
        out = torch.full_like(x, fill)
        if abs(by) < x.shape[-1]:
            if by > 0:
                out[..., :-by] = x[..., by:]
            else:
                out[..., -by:] = x[..., :by]
        return out

    near = {k: shifted(values, k, 0.0) for k in (-2, -1, 1, 2)}
    here = {k: shifted(valid, k, False) & valid for k in (-2, -1, 1, 2)}
    central = torch.where(here[-1] & here[1], (near[1] - 2 * values + near[-1]).abs(), infinite)
    # A one-sided stencil without its second neighbour has unknown curvature: used only when nothing else is
    # there.
    last_resort = torch.finfo(values.dtype).max
    curves = []
    for one, two in ((1, 2), (-1, -2)):
        known = torch.where(here[two], (near[two] - 2 * near[one] + values).abs(), last_resort)
        curves.append(torch.where(here[one], known, infinite))
    forward, backward = curves
    # The central difference is second-order exact on curved surfaces, so a one-sided one has to be clearly
    # straighter.
    one_sided = torch.minimum(forward, backward)
    use_central = torch.isfinite(central) & (central <= 4 * one_sided + 1e-9 * values.abs())
    side = torch.where(forward <= backward, near[1] - values, values - near[-1])
    slope = torch.where(use_central, (near[1] - near[-1]) * 0.5, side)
    none = ~torch.isfinite(one_sided) & ~torch.isfinite(central)
    return torch.where(none, torch.full_like(slope, math.nan), slope)


def depth_edges(depth: Tensor, mask: Tensor | None = None, relative: float = 0.05, reach: int = 1) -> Tensor:
    """Pixels beside a jump in depth: bool, the shape of depth (B, H, W) or (H, W).

    Between two pixels the disparity must continue the slope of at least one side within `relative` of the
    larger disparity; slanted planes and creases pass at any angle, silhouettes do not. `reach` also looks
    across that many pixels, for edges that a network has softened. Pixels outside `mask`, and their
    neighbours, count as edges.
    """
    if not relative > 0 or reach < 1:
        raise ValueError(
            f"relative, reach: found {relative}, {reach}; expected a positive fraction and at least 1."
        )
    valid = torch.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid = valid & mask
    disparity = torch.where(valid, 1.0 / torch.where(valid, depth, torch.ones_like(depth)), 0.0)
    edges = ~valid
    for step in range(1, reach + 1):
        edges = edges | _jumps(disparity, valid, relative, step)
        edges = edges | _jumps(
            disparity.transpose(-1, -2), valid.transpose(-1, -2), relative, step
        ).transpose(-1, -2)
    return edges


def _jumps(disparity: Tensor, valid: Tensor, relative: float, step: int) -> Tensor:
    """depth_edges along the last axis for one baseline of `step` pixels."""
    out = torch.zeros_like(valid)
    n = disparity.shape[-1]
    if n <= step:
        return out
    jump = disparity[..., step:] - disparity[..., :-step]
    both = valid[..., step:] & valid[..., :-step]
    tolerance = relative * torch.maximum(disparity[..., step:], disparity[..., :-step])
    # continuing the slope of the left (right) side: the jump one step earlier (later); absent at borders
    misses = []
    for before in (True, False):
        miss = jump.abs()
        if n > 2 * step:
            inner = (jump[..., step:] - jump[..., :-step]).abs()
            usable = both[..., step:] & both[..., :-step]
            if before:
                miss = torch.cat([miss[..., :step], torch.where(usable, inner, miss[..., step:])], dim=-1)
            else:
                miss = torch.cat([torch.where(usable, inner, miss[..., :-step]), miss[..., -step:]], dim=-1)
        misses.append(miss)
    torn = (torch.minimum(*misses) > tolerance) | ~both
    for offset in range(step + 1):
        out[..., offset : n - step + offset] |= torn
    return out


def _require_vectors(tensor: Tensor, name: str) -> None:
    if tensor.ndim < 1 or tensor.shape[-1] != 3:
        raise ValueError(
            f"{name}: found shape {tuple(tensor.shape)}, expected (..., 3) with the vector last."
        )


def require_intrinsics(intrinsics: Tensor) -> None:
    if intrinsics.ndim not in (2, 3) or intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"intrinsics: found shape {tuple(intrinsics.shape)}, expected (3, 3) or (B, 3, 3).")
