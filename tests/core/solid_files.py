"""Readers of GLB and PLY written from their specifications, for tests only: they share no code with the
writers."""

from __future__ import annotations

import json
import struct

import numpy as np

_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}
_TYPES = {5126: np.float32, 5125: np.uint32}


def read_glb(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON document, and the arrays of the only primitive: attribute names and "indices"."""
    document, binary = _chunks(data)

    def array(number: int) -> np.ndarray:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        columns = _COMPONENTS[accessor["type"]]
        values = np.frombuffer(
            binary, _TYPES[accessor["componentType"]], accessor["count"] * columns, view["byteOffset"]
        )
        return values.reshape(-1, columns)

    primitive = document["meshes"][0]["primitives"][0]
    arrays = {name: array(number) for name, number in primitive["attributes"].items()}
    arrays["indices"] = array(primitive["indices"]).reshape(-1, 3)
    return document, arrays


def glb_picture(document: dict, data: bytes) -> bytes:
    """The file bytes of the only picture, which lies in the binary chunk."""
    (picture,) = document["images"]
    view = document["bufferViews"][picture["bufferView"]]
    start = view.get("byteOffset", 0)
    return _chunks(data)[1][start : start + view["byteLength"]]


def _chunks(data: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    document = json.loads(data[20 : 20 + size])
    start = 20 + size
    size, kind = struct.unpack_from("<I4s", data, start)
    assert kind == b"BIN\0"
    return document, data[start + 8 : start + 8 + size]


def read_ply(data: bytes) -> dict[str, np.ndarray]:
    """The vertex properties of a binary little-endian PLY."""
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    kinds = {"float": "<f4", "uchar": "u1"}
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    vertices = np.frombuffer(body, np.dtype([(name, kinds[kind]) for kind, name in properties]))
    assert len(vertices) == count
    return {name: vertices[name] for name in vertices.dtype.names}
