"""Binary PLY files of point clouds."""

from __future__ import annotations

import numpy as np
import torch

from .geometry import y_up_from_opencv
from .pointcloud import PointCloud

_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
)


def write_ply(cloud: PointCloud) -> bytes:
    """The bytes of a little-endian binary PLY: position, normal, 8-bit colour of every point.

    Axes are converted from OpenCV to y up, looking along -z: PLY itself has none, and the viewers of points
    (three.js, MeshLab, Blender's importer with its defaults) show y up.
    """
    count = len(cloud.points)
    vertices = np.empty(count, dtype=_VERTEX)
    position, normal = (y_up_from_opencv(t).cpu().numpy() for t in (cloud.points, cloud.normals))
    color = (cloud.colors * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    for values, names in ((position, "x y z"), (normal, "nx ny nz"), (color, "red green blue")):
        for column, name in enumerate(names.split()):
            vertices[name] = values[:, column]
    kinds = {"<f4": "float", "|u1": "uchar"}
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        "comment FE2E, y up, camera at the origin looking along -z",
    ]
    lines.append(f"element vertex {count}")
    lines += [f"property {kinds[_VERTEX[name].str]} {name}" for name in _VERTEX.names]
    lines.append("end_header")
    return ("\n".join(lines) + "\n").encode("ascii") + vertices.tobytes()
