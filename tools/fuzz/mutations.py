"""Damage for files: what disks and networks do, and lies that only somebody who knows the format would tell.

Every function takes whole bytes and a `random.Random`, and returns other bytes; the same seed gives the same damage.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

_SIZES = (0, 1, 2, 3, 7, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -1, -(2**31))
_WORDS = (
    "nan", "inf", "-inf", "1e400", "-0", "0", "-1", "2147483648", "99999999999999999999", "1e-400", '""', "[]", "[[]]",
    "{}", "true", "null", '"\\u0000"', '"../../../etc/passwd"', "1979-05-27T07:32:00Z", '"é深度 \\u2028"', "0x7fffffff",
    "[" * 3000, "{a=" * 2000, '{"a":' * 3000, "'" * 7, "\x00", "\ufeff", "9" * 5000,
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|\"[^\"\n]*\"|true|false", re.IGNORECASE)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Damage that knows nothing of the format: bits, pieces lost, repeated or moved, whole numbers replaced."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        # headers stand at the ends of a file, and most of what can go wrong stands in headers
        reach = chance.choice((64, 1024, len(out) or 1))
        at = chance.randrange(max(1, min(reach, len(out))))
        if chance.random() < 0.3:
            at = max(0, len(out) - 1 - at)
        kind = chance.randrange(8)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[at : at + chance.choice((1, 4, 16))] = chance.randbytes(chance.choice((1, 4, 16)))
        elif kind == 2:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(_SIZES) % 2 ** (8 * size)
            out[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + chance.choice((1, 8, 100))]
        elif kind == 5:
            out[at:at] = chance.choice((b"\0" * 64, chance.randbytes(9), bytes(out[: chance.randrange(1, 200)])))
        elif kind == 6:
            out += chance.choice((b"\0", b"\0" * 4096, chance.randbytes(100)))
        elif kind == 7 and len(out) > 16:
            other = chance.randrange(len(out) - 8)
            out[at : at + 8], out[other : other + 8] = out[other : other + 8], out[at : at + 8]
    return bytes(out)


def lie_in_text(data: bytes, chance: random.Random) -> bytes:
    """TOML, JSON, CSV and numbers in lines: values replaced, lines lost, repeated, swapped or given other names."""
    text = data.decode("utf-8", "replace")
    for _ in range(chance.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        here = chance.randrange(len(lines))
        kind = chance.randrange(6)
        found = list(_NUMBER.finditer(text))
        if kind <= 2 and found:
            value = chance.choice(found)
            text = text[: value.start()] + chance.choice(_WORDS) + text[value.end() :]
        elif kind == 3:
            del lines[here]
            text = "\n".join(lines)
        elif kind == 4:
            lines.insert(chance.randrange(len(lines) + 1), lines[here])
            text = "\n".join(lines)
        else:
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice((*_WORDS, "[", "]", "=", ",", "#", "\n", '"')) + text[at:]
    return text.encode("utf-8", "surrogatepass")


def lie_in_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A header that is well-formed and wrong: shapes, types, places, names, or the file's own notes."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        body = data[8 + length :]
    except (struct.error, ValueError):
        return damage(data, chance)
    notes = header.get("__metadata__", {})
    for _ in range(chance.choice((1, 1, 2))):
        names = [name for name in header if name != "__metadata__"]
        name = chance.choice(names)
        entry = header[name]
        kind = chance.randrange(9)
        if kind == 0 and entry["shape"]:
            entry["shape"][chance.randrange(len(entry["shape"]))] = chance.choice(_SIZES)
        elif kind == 1:
            entry["shape"] = chance.choice(([], [0], entry["shape"][::-1], [1, *entry["shape"]], [2**32, 2**32]))
        elif kind == 2:
            entry["dtype"] = chance.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "X"))
        elif kind == 3:
            entry["data_offsets"][chance.randrange(2)] = chance.choice(_SIZES)
        elif kind == 4:
            del header[name]
        elif kind == 5:
            number = re.sub(r"\d+", lambda _: str(chance.choice((0, 7, 10**9, "x"))), name, count=1)
            header[chance.choice((number, name.upper(), name + ".x", "", "a" * 10_000))] = header.pop(name)
        elif kind == 6 and notes:
            notes[chance.choice(list(notes))] = chance.choice(_WORDS).strip('"')
        elif kind == 7 and notes:
            key = chance.choice(list(notes))
            notes[key] = lie_in_text(notes[key].encode(), chance).decode("utf-8", "replace")
        elif kind == 8:
            # numbers of the tensors themselves: NaN, infinity, and all bits set
            first, last = entry["data_offsets"] if isinstance(entry["data_offsets"][0], int) else (0, 0)
            filled = chance.choice((b"\xff", b"\x7f", b"\x00")) * max(0, min(last - first, len(body) - first))
            body = body[:first] + filled + body[first + len(filled) :]
        if not header or list(header) == ["__metadata__"]:
            break
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def lie_in_npz(data: bytes, chance: random.Random) -> bytes:
    """Arrays whose own header lies, inside an archive that is whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error):
        return damage(data, chance)
    if not members:
        return data
    name = chance.choice(list(members))
    if chance.random() < 0.15:
        members[chance.choice((name + "x", "../" + name, name.upper()))] = members.pop(name)
    else:
        members[name] = lie_in_npy(members[name], chance)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return out.getvalue()


def lie_in_npy(data: bytes, chance: random.Random) -> bytes:
    """Another shape, type or order in the header of a .npy array, its length made to fit."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return damage(data, chance)
    end = 10 + struct.unpack("<H", data[8:10])[0]
    header = data[10:end].decode("latin-1")
    sizes = ", ".join(str(chance.choice((1, 2, 3, *_SIZES))) for _ in range(chance.randrange(5)))
    kinds = ("<f8", "<f2", "|O", "<c16", "|V8", "<U9", "|b1", "<M8[s]", ">i8", "x", [("a", "<f4")])
    kind = chance.randrange(4)
    if kind == 0:
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({sizes},)" if sizes else "'shape': ()", header)
    elif kind == 1:
        header = re.sub(r"'descr': [^,]*", f"'descr': {chance.choice(kinds)!r}", header)
    elif kind == 2:
        header = header.replace("False", chance.choice(("True", "None", "1" * 50, "(" * 500)))
    else:
        header = damage(header.encode("latin-1"), chance).decode("latin-1")
    body = header.encode("latin-1", "replace")[:65_535]
    return data[:8] + struct.pack("<H", len(body)) + body + data[end:]


def lie_in_png(data: bytes, chance: random.Random) -> bytes:
    """Another size, depth or colour type in a PNG's header, its check sum made right again."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        return damage(data, chance)
    head = bytearray(data[16:29])
    at, size = chance.choice(((0, 4), (4, 4), (8, 1), (9, 1), (12, 1)))
    head[at : at + size] = (chance.choice(_SIZES) % 2 ** (8 * size)).to_bytes(size, "big")
    return data[:16] + bytes(head) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(head))) + data[33:]


def lie_in_exr(data: bytes, chance: random.Random) -> bytes:
    """Another window, type or size in an attribute of an OpenEXR header."""
    found = list(re.finditer(rb"(dataWindow|displayWindow)\0box2i\0\x10\0\0\0", data))
    other = list(re.finditer(rb"\0(channels|compression|lineOrder|fe2e\w+|screenWindowWidth)\0\w+\0....", data, re.DOTALL))
    if not found or (other and chance.random() < 0.5):
        if not other:
            return damage(data, chance)
        at = chance.choice(other).end() - chance.choice((4, 0, 1))
        number = (chance.choice(_SIZES) % 2**32).to_bytes(4, "little")
        return data[:at] + number + data[at + 4 :]
    at = chance.choice(found).end() + 4 * chance.randrange(4)
    return data[:at] + (chance.choice(_SIZES) % 2**32).to_bytes(4, "little") + data[at + 4 :]


#: By the ending of a file: damage for any file, and the lies for this kind.
MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    ".safetensors": (damage, lie_in_safetensors, lie_in_safetensors),
    ".npz": (damage, lie_in_npz),
    ".npy": (damage, lie_in_npy),
    ".png": (damage, lie_in_png),
    ".exr": (damage, lie_in_exr),
    ".toml": (damage, lie_in_text, lie_in_text),
    ".csv": (damage, lie_in_text),
    ".json": (damage, lie_in_text, lie_in_text),
}


def mutate(name: str, data: bytes, chance: random.Random) -> bytes:
    """One damaged copy of a file called `name`."""
    kinds = MUTATIONS.get("." + name.rpartition(".")[2].lower(), (damage,))
    return chance.choice(kinds)(data, chance)
