"""Every file that is written is read back as it was, whatever is in it; every piece of one is refused."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fe2e_core.exr import EXR_PRESETS, read_exr, write_exr
from fe2e_core.npyfiles import read_npy_array, read_npz_arrays
from fe2e_core.npz import read_npz, write_npz
from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.strict_json import parse_json
from fe2e_core.temporal import DepthStabilizer, stabilize_clip
from fe2e_core.tensorfile import TensorFile, write_tensors

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
OPTIONAL = ("log_range", "log_near", "metric", "depth", "intrinsics", "confidence")
#: Any path that Linux, macOS and Windows allow, short enough for all of them.
FILE_NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='/\\:*?"<>|'), min_size=1, max_size=20)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
          torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("größe 深度 \u2028")


def geometry(size: tuple[int, int, int], seed: int, keys: set[str]) -> dict:
    generator = torch.Generator().manual_seed(seed)
    b, h, w = size

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    whole = {
        "log_depth": random(b, h, w) * 2 - 1, "normal": random(b, h, w, 3) - 0.5, "mask": random(b, h, w) > 0.5,
        "image": random(b, h, w, 3), "log_range": random(b), "log_near": random(b), "metric": seed % 2 == 0,
        "depth": random(b, h, w) + 0.1, "confidence": random(b, h, w),
        "intrinsics": torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).expand(b, 3, 3) + 0.1 * random(b, 3, 3),
    }  # fmt: skip
    return {key: value for key, value in whole.items() if key not in OPTIONAL or key in keys}


@given(SIZES, st.integers(0, 2**20), st.sets(st.sampled_from(OPTIONAL)), st.booleans(), st.booleans())
def test_npz_round_trip(folder, size, seed, keys, image, compress):
    given_geometry = geometry(size, seed, keys)
    path = folder / "geometry.npz"
    write_npz(path, given_geometry, image=image, compress=compress)
    back = read_npz(path)
    assert set(back) == set(given_geometry)
    for key, value in given_geometry.items():
        if key == "metric":
            assert back[key] is value
        elif key == "image" and not image:
            assert not back[key].any()
        else:
            assert back[key].dtype == value.dtype and torch.equal(back[key], value), key


@given(SIZES, st.integers(0, 2**20), st.sets(st.sampled_from(("log_range", "log_near", "metric", "confidence"))), FILE_NAMES,
       st.sampled_from(sorted(EXR_PRESETS)))  # fmt: skip
def test_exr_round_trip(folder, size, seed, keys, name, preset):
    given_geometry = geometry(size, seed, keys | {"depth", "intrinsics"})
    path = folder / f"{name}.exr"
    index = seed % size[0]
    write_exr(path, given_geometry, index, preset)
    back = read_exr(path)
    path.unlink()
    assert set(back) == set(given_geometry) | {"metric"}
    for key, value in given_geometry.items():
        if key == "metric":
            assert back[key] is value
        else:
            torch.testing.assert_close(back[key][0].to(torch.float64), value[index].to(torch.float64), atol=2e-6, rtol=2e-6)


tensors_strategy = st.dictionaries(
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
    max_size=5,
)


@given(tensors_strategy, st.dictionaries(st.text(st.characters(blacklist_categories=("Cs",)), max_size=8), st.text(
    st.characters(blacklist_categories=("Cs",)), max_size=20), max_size=3), st.data())  # fmt: skip
def test_tensor_files(folder, kinds, metadata, data):
    tensors = {name: torch.randint(0, 100, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    path = folder / "any.safetensors"
    write_tensors(path, tensors, metadata)
    with TensorFile(path, "model") as file:
        assert file.metadata == metadata
        assert set(file) == set(tensors)
        for name, tensor in tensors.items():
            assert file[name].dtype == tensor.dtype and file[name].shape == tensor.shape == file.meta(name).shape
            assert torch.equal(file[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"model: 'any\.safetensors'"):
        TensorFile(path, "model")


def npy(shape: tuple[int, ...], dtype: str, data: bytes, fortran: bool = False) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return out.getvalue() + data


@given(st.lists(st.integers(0, 2**66) | st.integers(0, 5), max_size=5), st.sampled_from(("<f4", ">f4", "<i8", "|b1", "|u1", "|O", "<U9")),
       st.binary(max_size=200), st.booleans())  # fmt: skip
def test_arrays_never_take_more_than_the_file_has(folder, shape, dtype, data, fortran):
    """NumPy's own answer where it has one; a claim beyond the data is refused before any room is made."""
    path = folder / "any.npy"
    path.write_bytes(npy(tuple(shape), dtype, data, fortran))
    with zipfile.ZipFile(folder / "any.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "a.npy")
    holds = np.dtype(dtype).kind in "fiub" and np.prod([float(n) for n in shape]) * np.dtype(dtype).itemsize <= len(data)
    readers = (lambda: read_npy_array(path), lambda: read_npz_arrays(folder / "any.npz", ["a"])["a"])
    for read in readers:
        if holds:
            try:
                expected = np.load(path, allow_pickle=False)
            except (ValueError, OverflowError):  # an empty array with sides that NumPy finds too vast
                with pytest.raises(ValueError):
                    read()
                continue
            assert read().dtype == expected.dtype.newbyteorder("=")
            np.testing.assert_array_equal(read(), expected)
        else:
            with pytest.raises(ValueError, match="it "):
                read()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_header_that_claims_gigabytes_gets_no_room(folder, version):
    """Of an array's file and of one in an archive; found by tools.fuzz."""
    length = 2 if version == 1 else 4
    data = b"\x93NUMPY" + bytes([version, 0]) + b"\xff" * length + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"
    (folder / "long.npy").write_bytes(data)
    with zipfile.ZipFile(folder / "long.npz", "w") as archive:
        archive.writestr("a.npy", data)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**30, before[1]))
    try:
        for read in (lambda: read_npy_array(folder / "long.npy"), lambda: read_npz_arrays(folder / "long.npz", ["a"])):
            with pytest.raises(ValueError, match="header"):
                read()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_prompt_caches(folder, tokens, width, data):
    mask = data.draw(st.lists(st.integers(0, 1), min_size=tokens, max_size=tokens))
    embeds = np.random.default_rng(tokens).standard_normal((tokens, width)).astype(data.draw(st.sampled_from(("f2", "f4", "f8"))))
    path = folder / "cache.npz"
    np.savez_compressed(path, embeds=embeds, masks=np.array(mask))
    if not any(mask):
        with pytest.raises(ValueError, match="prompt cache"):
            read_prompt_cache(path)
        return
    found, found_mask = read_prompt_cache(path)
    np.testing.assert_array_equal(found.numpy(), embeds.astype(np.float32))
    assert found_mask.tolist() == mask


@example(frames=3, height=8, width=12, seed=8)  # one frame of it has nothing to compare
@given(st.integers(1, 4), st.integers(8, 20), st.integers(8, 20), st.integers(0, 2**20))
def test_a_clip_goes_on_from_its_text_as_from_itself(frames, height, width, seed):
    clip, more = geometry((frames, height, width), seed, set()), geometry((2, height, width), seed + 1, set())
    whole = DepthStabilizer()
    stabilize_clip(clip["log_depth"], clip["mask"], clip["image"], whole)
    copy = DepthStabilizer.from_json(whole.to_json())
    assert copy.frames == whole.frames
    # the reference frames are kept in half precision
    expected = stabilize_clip(more["log_depth"], more["mask"], None, whole)
    found = stabilize_clip(more["log_depth"], more["mask"], None, copy)
    assert [f.cut for f in found] == [f.cut for f in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.log_range == pytest.approx(theirs.log_range, abs=0.05)


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)  # fmt: skip


@given(st.text(max_size=50) | json_values.map(json.dumps), st.data())
def test_other_text_is_no_clip(text, data):
    with pytest.raises(ValueError, match="scale state"):
        DepthStabilizer.from_json(text)
    clip = geometry((2, 9, 9), 5, set())
    solver = DepthStabilizer()
    stabilize_clip(clip["log_depth"], clip["mask"], clip["image"], solver)
    good = json.loads(solver.to_json())
    key = data.draw(st.sampled_from(sorted(good)))
    good[key] = data.draw(json_values.filter(lambda value: value != good[key] and (key != "frames" or value != [])))
    try:
        DepthStabilizer.from_json(json.dumps(good))
    except ValueError as error:
        assert "scale state" in str(error)
    else:
        assert key in ("fov_x_degrees",), key


def test_brackets_without_end_are_no_json():
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 100_000)
