"""Predictions of other programs: every kind of file says the same thing, and what says nothing is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
import torch

from fe2e_core.exr import EXR_PRESETS, write_exr
from fe2e_core.geometry import encode_normal
from fe2e_core.npz import write_npz
from fe2e_core.png16 import encode_png16
from tests.train.bench_archives import NAMES, write_normal_archive
from train.bench.estimate import Estimate
from train.bench.folder import FolderPredictor, candidates
from train.bench.registry import BENCHMARKS
from train.bench.run import Evaluation, Job, Plan

NAME = "test/kitchen_0004/rgb_0001"
SIZE = (9, 12)


@pytest.fixture
def geometry() -> dict:
    """An FE2E_GEOMETRY of one picture with all that EXR needs."""
    random = torch.Generator().manual_seed(1)
    normal = torch.randn(1, *SIZE, 3, generator=random)
    label = torch.rand(1, *SIZE, generator=random) * 2 - 1
    return {
        "log_depth": label,
        "normal": normal / normal.norm(dim=-1, keepdim=True),
        "mask": torch.ones(1, *SIZE, dtype=torch.bool),
        "image": torch.rand(1, *SIZE, 3, generator=random),
        "depth": (label + 1.5).exp(),
        "intrinsics": torch.tensor([[[1.0, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]]),
    }


def place(folder: Path, key: str, name: str, ending: str) -> Path:
    path = folder / key / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def ask(folder: Path, task: str, convention: str = "OpenCV", label: bool = False, name: str = NAME) -> Estimate:
    predictor = FolderPredictor(folder, "method", convention, label)
    return predictor("nyuv2-depth", task, name, torch.zeros(*SIZE, 3), SIZE)


def test_our_own_files_need_no_further_word(tmp_path: Path, geometry: dict) -> None:
    write_npz(place(tmp_path / "npz", "nyuv2-depth", NAME, ".npz"), geometry)
    for preset in EXR_PRESETS:
        write_exr(place(tmp_path / preset, "nyuv2-depth", NAME, ".exr"), geometry, 0, preset)
    for folder in ("npz", *EXR_PRESETS):
        # even a wrong convention changes nothing: these files say what they hold
        found = ask(tmp_path / folder, "depth", "DirectX")
        assert found.label and torch.allclose(found.depth, geometry["log_depth"][0])
        assert torch.allclose(ask(tmp_path / folder, "normal", "DirectX").normal, geometry["normal"][0], atol=1e-6)


def test_plain_arrays(tmp_path: Path, geometry: dict) -> None:
    depth, normal = geometry["depth"][0].numpy(), geometry["normal"][0].numpy()
    for number, array in enumerate((depth, depth[None], depth[None, ..., None])):
        np.save(place(tmp_path / str(number), "nyuv2-depth", NAME, ".npy"), array)
        found = ask(tmp_path / str(number), "depth")
        assert not found.label and np.array_equal(found.depth.numpy(), depth)
        assert ask(tmp_path / str(number), "depth", label=True).label
    for number, array in enumerate((normal, normal.transpose(2, 0, 1), normal[None])):
        np.save(place(tmp_path / f"n{number}", "nyuv2-depth", NAME, ".npy"), array)
        assert np.array_equal(ask(tmp_path / f"n{number}", "normal").normal.numpy(), normal)
        turned = ask(tmp_path / f"n{number}", "normal", "DSINE / BAE").normal.numpy()
        assert np.array_equal(turned, -normal)
    np.savez(place(tmp_path / "z", "nyuv2-depth", NAME, ".npz"), depth=depth, normal=normal)
    assert not ask(tmp_path / "z", "depth", label=True).label  # the key says depth
    assert np.array_equal(ask(tmp_path / "z", "normal", "OpenGL").normal.numpy(), normal * [1, -1, -1])


def test_exr_of_other_programs(tmp_path: Path, geometry: dict) -> None:
    depth, normal = geometry["depth"][0].numpy(), geometry["normal"][0].numpy()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for name, channels in (("z", {"Z": depth}), ("y", {"Y": depth}), ("layer", {"ViewLayer.Depth.Z": depth})):
        OpenEXR.File(header, channels).write(str(place(tmp_path / name, "nyuv2-depth", NAME, ".exr")))
        assert np.array_equal(ask(tmp_path / name, "depth").depth.numpy(), depth)
    planes = [np.ascontiguousarray(normal[..., i]) for i in range(3)]
    for number, names in enumerate((("R", "G", "B"), ("X", "Y", "Z"), ("N.x", "N.y", "N.z"))):
        path = place(tmp_path / f"n{number}", "nyuv2-depth", NAME, ".exr")
        OpenEXR.File(header, dict(zip(names, planes, strict=True))).write(str(path))
        assert np.array_equal(ask(tmp_path / f"n{number}", "normal").normal.numpy(), normal)


def test_pictures(tmp_path: Path, geometry: dict) -> None:
    depth, normal = geometry["depth"][0] / 20, geometry["normal"][0]
    place(tmp_path / "d", "nyuv2-depth", NAME, ".png").write_bytes(encode_png16(depth))
    assert torch.allclose(ask(tmp_path / "d", "depth").depth, depth, atol=1e-5)
    colours = encode_normal(normal, "OpenGL")
    place(tmp_path / "n", "nyuv2-depth", NAME, ".png").write_bytes(encode_png16(colours))
    assert torch.allclose(ask(tmp_path / "n", "normal", "OpenGL").normal, normal, atol=1e-4)
    eight = (colours * 255).round().byte().numpy()
    cv2.imwrite(str(place(tmp_path / "e", "nyuv2-depth", NAME, ".png")), eight[..., ::-1])
    assert torch.allclose(ask(tmp_path / "e", "normal", "OpenGL").normal, normal, atol=5e-3)
    cv2.imwrite(str(place(tmp_path / "g", "nyuv2-depth", NAME, ".png")), (depth * 255).byte().numpy())
    with pytest.raises(ValueError, match="8 bits have lost"):
        ask(tmp_path / "g", "depth")
    cv2.imwrite(str(place(tmp_path / "t", "nyuv2-depth", NAME, ".tif")), geometry["depth"][0].numpy())
    assert torch.equal(ask(tmp_path / "t", "depth").depth, geometry["depth"][0])


@pytest.mark.parametrize("stem", ["rgb_0001", "pred_rgb_0001", "pred_0001", "rgb_0001_depth", "0001"])
def test_names_that_programs_use(tmp_path: Path, stem: str) -> None:
    np.save(place(tmp_path, "nyuv2-depth", f"test/kitchen_0004/{stem}", ".npy"), np.ones(SIZE))
    assert ask(tmp_path, "depth").depth.shape == SIZE
    assert list(candidates("frame", "normal"))[:2] == ["frame", "frame_normal"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 9, 12)), "one image a file"),
        (np.ones((9, 12, 3), dtype=complex), "floats or integers"),
        (np.ones(9), "one image a file"),
        (np.array([None]), "numpy.save"),
    ],
)
def test_arrays_that_are_no_prediction(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(place(tmp_path, "nyuv2-depth", NAME, ".npy"), array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        ask(tmp_path, "depth")
    assert "rgb_0001.npy" in str(caught.value)


def test_normals_where_depth_is_asked(tmp_path: Path, geometry: dict) -> None:
    np.save(place(tmp_path, "nyuv2-depth", NAME, ".npy"), geometry["depth"][0].numpy())
    with pytest.raises(ValueError, match="holds no normal"):
        ask(tmp_path, "normal")
    with pytest.raises(FileNotFoundError, match="no prediction with one of the endings"):
        ask(tmp_path, "depth", name="test/other")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderPredictor(tmp_path / "absent", "x")
    with pytest.raises(ValueError, match="convention 'marigold' is unknown"):
        FolderPredictor(tmp_path, "x", "marigold")


def test_a_wrong_convention_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(2)
    truths = []
    for height, width in ((20, 30), (10, 16)):
        vectors = rng.normal(size=(height, width, 3)) + [0, 0, 1.5]
        truths.append(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    archive = write_normal_archive(tmp_path, {"ibims": truths})
    for name, truth in zip(NAMES["ibims"], truths, strict=True):
        np.save(place(tmp_path / "p", "ibims", name, ".npy"), truth)  # DSINE's axes
    for convention, warned in (("OpenGL", True), ("DSINE / BAE", False)):
        caplog.clear()
        predictor = FolderPredictor(tmp_path / "p", "method", convention)
        evaluation = Evaluation(Plan((Job(BENCHMARKS["ibims"], archive),)), predictor, tmp_path / convention[:4])
        with caplog.at_level(logging.WARNING):
            evaluation.run()
        assert ("with x negated; check --normal-convention" in caplog.text) == warned
        mean = evaluation.finish().benchmarks["ibims"]["means"]["pooled"]["mean"]
        assert (mean > 20) if warned else (mean < 1e-3)
