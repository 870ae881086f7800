"""A finished GLB file (glTF 2.0, Khronos): positions, normals, texture coordinates, one picture, one
camera."""

from __future__ import annotations

import base64
import io
import json
import math
import struct

import numpy as np
import torch
from torch import Tensor

from .geometry import y_up_from_opencv
from .mesh import Mesh

_FLOAT, _UINT = 5126, 5125
_VERTICES, _INDICES = 34962, 34963  # what a buffer view is for
_LINEAR, _CLAMP = 9729, 33071


def encode_texture(image: Tensor, kind: str = "png") -> tuple[bytes, str]:
    """(H,W,3) in [0,1] -> file bytes and their media type; "png" is exact to 8 bits, "jpeg" a tenth of the
    size."""
    from PIL import Image

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    if kind == "png":
        Image.fromarray(pixels, "RGB").save(buffer, "PNG", compress_level=4)
    elif kind == "jpeg":
        Image.fromarray(pixels, "RGB").save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        raise ValueError(f"texture: found {kind!r}, expected png or jpeg")
    return buffer.getvalue(), f"image/{kind}"


def write_glb(
    mesh: Mesh,
    texture: tuple[bytes, str] | None = None,
    *,
    intrinsics: Tensor | None = None,
    aspect: float = 1.0,
    unlit: bool = False,
    inline: bool = False,
) -> bytes:
    """The bytes of a GLB of `mesh`, axes converted from OpenCV to glTF's (y up, looking along -z).

    `texture` are file bytes and media type of the base colour; `intrinsics` (3,3) normalised with `aspect` =
    width / height adds the camera that took the picture (glTF cameras have a centred principal point);
    `unlit` shows the texture as it is, without the viewer's lamps (KHR_materials_unlit). `inline` writes the
    texture as a data URI instead of bytes of the binary chunk: a third larger, and readable where a web page
    may not open blobs. Raises ValueError for an empty mesh.
    """
    if len(mesh.faces) == 0:
        raise ValueError("mesh: found no triangles, expected at least one")
    chunks = _Chunks()
    position = chunks.attribute(y_up_from_opencv(mesh.vertices), bounds=True)
    attributes = {
        "POSITION": position,
        "NORMAL": chunks.attribute(y_up_from_opencv(mesh.normals)),
        "TEXCOORD_0": chunks.attribute(mesh.uvs),
    }
    indices = chunks.indices(mesh.faces)

    material: dict = {
        "name": "photograph",
        "doubleSided": True,
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
    }
    document: dict = {
        "asset": {"version": "2.0", "generator": "FE2E"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "surface"}],
        "meshes": [
            {"primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}
        ],
        "materials": [material],
    }
    if texture is not None:
        data, media_type = texture
        if inline:
            source = {"uri": f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"}
        else:
            source = {"bufferView": chunks.view(data), "mimeType": media_type}
        document["images"] = [{**source, "name": "photograph"}]
        document["samplers"] = [
            {"magFilter": _LINEAR, "minFilter": _LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
        ]
        document["textures"] = [{"source": 0, "sampler": 0}]
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    if unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}
        document["extensionsUsed"] = ["KHR_materials_unlit"]
    if intrinsics is not None:
        nearest = float(mesh.vertices[:, 2].min())
        perspective = {
            "yfov": 2 * math.atan(0.5 / float(intrinsics[1, 1])),
            "aspectRatio": float(aspect),
            "znear": max(nearest * 0.1, 1e-6),
        }
        document["cameras"] = [{"type": "perspective", "perspective": perspective}]
        # a node without a transform: the camera is the origin and already looks along -z
        document["nodes"].append({"camera": 0, "name": "camera"})
        document["scenes"][0]["nodes"].append(1)
    document["bufferViews"], document["accessors"] = chunks.views, chunks.accessors
    document["buffers"] = [{"byteLength": len(chunks.data)}]
    return _container(document, bytes(chunks.data))


class _Chunks:
    """The binary chunk under construction; every view starts at a multiple of four bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        self.data += data
        self.views.append(view)
        return len(self.views) - 1

    def attribute(self, values: Tensor, bounds: bool = False) -> int:
        array = np.ascontiguousarray(values.detach().cpu().numpy(), dtype="<f4")
        accessor = {
            "bufferView": self.view(array.tobytes(), _VERTICES),
            "componentType": _FLOAT,
            "count": len(array),
            "type": f"VEC{array.shape[1]}",
        }
        if bounds:  # required for positions, and has to be exact
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def indices(self, faces: Tensor) -> int:
        array = np.ascontiguousarray(faces.detach().cpu().numpy(), dtype="<u4").reshape(-1)
        view = self.view(array.tobytes(), _INDICES)
        self.accessors.append(
            {"bufferView": view, "componentType": _UINT, "count": len(array), "type": "SCALAR"}
        )
        return len(self.accessors) - 1


def _container(document: dict, binary: bytes) -> bytes:
    """GLB: a 12-byte header, a JSON chunk padded with spaces, a binary chunk padded with zeros."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, total),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(binary), b"BIN\0"),
            binary,
        ]
    )
