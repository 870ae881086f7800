"""All nine readers on miniature archives: what they read, and the scores against a direct computation in float64."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.train.bench_archives import (
    NAMES,
    SIZES,
    picture,
    stored_colours,
    write_depth_archive,
    write_normal_archive,
)
from train.bench.angles import unpack
from train.bench.archive import Archive
from train.bench.estimate import Estimate
from train.bench.protocol import chosen
from train.bench.registry import BENCHMARKS, select
from train.bench.score import fitted_columns, score_depth, score_normal
from train.bench.summary import normal_row, summarise

DEPTH_KEYS = [key for key, benchmark in BENCHMARKS.items() if benchmark.task == "depth"]
NORMAL_KEYS = [key for key, benchmark in BENCHMARKS.items() if benchmark.task == "normal"]

# the protocol, once more and by hand: range in metres, and the rows and columns that count
RANGES = {"nyuv2-depth": (1e-3, 10), "kitti": (1e-5, 80), "eth3d": (1e-5, np.inf), "scannet-depth": (1e-3, 10),
          "diode": (0.6, 350)}  # fmt: skip


def stored_depth(key: str, number: int) -> np.ndarray:
    """Metres that the format can hold exactly: 0 in holes, some beyond every range."""
    rng = np.random.default_rng([7, len(key), number])
    depth = np.exp(rng.uniform(np.log(0.7), np.log(9.5), SIZES[key][number]))
    depth[rng.random(depth.shape) < 0.1] = 0
    depth[rng.random(depth.shape) < 0.03] = {"kitti": 90, "eth3d": 60, "diode": 400}.get(key, 12)
    steps = {"kitti": 256}.get(key, 1000)
    return (np.round(depth * steps) / steps).astype(np.float32).astype(np.float64)


def counted(key: str, depth: np.ndarray) -> np.ndarray:
    mask = (depth > RANGES[key][0]) & (depth < RANGES[key][1])
    window = np.zeros_like(mask)
    if key == "nyuv2-depth":
        window[45:471, 41:601] = True
        return mask & window
    if key == "kitti":
        window[117:321, 43:1172] = True
        return mask & window
    return mask


def own_mask(number: int) -> np.ndarray:
    return np.random.default_rng(number).random(SIZES["diode"][number]) < 0.8


def kitti_crop(array: np.ndarray) -> np.ndarray:
    left = {1242: 13, 1224: 4}[array.shape[1]]
    return array[-352:, left : left + 1216]


def direct_depth_errors(p: np.ndarray, truth: np.ndarray, mask: np.ndarray, key: str, alignment: str) -> dict[str, float]:
    """The published procedures, written down in NumPy."""
    p, truth = p.astype(np.float64), truth.astype(np.float64)
    if alignment == "log":
        use = mask & (p > 0)
        solution = np.linalg.lstsq(np.stack([p[use], np.ones(use.sum())], 1), np.log(truth[use]), rcond=None)[0]
        depth = np.exp(np.minimum(p * solution[0] + solution[1], 5))
    else:
        use = mask.copy()
        if key == "eth3d":  # thinned columns: 1024 of 1500, 1024 of 1400
            thin = np.zeros_like(mask)
            thin[:, [int(i * (truth.shape[1] / 1024)) for i in range(1024)]] = True
            use &= thin
        solution = np.linalg.lstsq(np.stack([p[use], np.ones(use.sum())], 1), truth[use], rcond=None)[0]
        depth = p * solution[0] + solution[1]
    depth = np.clip(depth, *RANGES[key])[mask]
    truth = truth[mask]
    ratio = np.maximum(depth / truth, truth / depth)
    return {
        "abs_rel": np.mean(np.abs(depth - truth) / truth),
        "sq_rel": np.mean((depth - truth) ** 2 / truth),
        "rmse": np.sqrt(np.mean((depth - truth) ** 2)),
        "log_rmse": np.sqrt(np.mean(np.log(depth / truth) ** 2)),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
    }


def predicted_label(truth: np.ndarray, number: int) -> np.ndarray:
    """A label map at half the truth's size, some of it at -1, where FE2E's rule leaves pixels out of the fit."""
    rng = np.random.default_rng([3, number])
    small = cv2.resize(np.maximum(truth, 0.3), (max(2, truth.shape[1] // 2), max(2, truth.shape[0] // 2)))
    label = np.log(small) * 0.7 - 0.9 + rng.normal(0, 0.1, small.shape)
    return np.clip(label, -1, 1).astype(np.float32)


@pytest.mark.parametrize("key", DEPTH_KEYS)
def test_depth_benchmarks_against_a_direct_computation(tmp_path: Path, key: str) -> None:
    truths = [stored_depth(key, n) for n in range(2)]
    masks = [own_mask(n) & (truths[n] > 0) for n in range(2)] if key == "diode" else None
    benchmark = BENCHMARKS[key]
    path = write_depth_archive(tmp_path, key, truths, masks)
    assert path.name == benchmark.archive
    with Archive(path) as archive:
        members = benchmark.find(archive)
        assert [member.name for member in members] == list(NAMES[key])
        samples = [benchmark.read(archive, member) for member in members]
    results, expected = {}, {"log": [], "linear": []}
    for number, sample in enumerate(samples):
        truth, image = truths[number], picture(key, number)
        if key == "kitti":
            truth, image = kitti_crop(truth), kitti_crop(image)
        mask = masks[number] if masks else counted(key, truth)
        assert sample.image.shape == image.shape and sample.mask.numpy().tolist() == mask.tolist()
        np.testing.assert_allclose(sample.truth.numpy()[mask], truth[mask], rtol=1e-7)
        if key not in ("eth3d", "scannet-depth"):  # JPEG loses
            np.testing.assert_allclose(sample.image.numpy(), image / 255, atol=1e-6)
        label = predicted_label(truth, number)
        found = score_depth(benchmark, ("log", "linear"), Estimate(torch.from_numpy(label), label=True), sample)
        results[sample.name] = found
        assert found["pixels"] == mask.sum()
        unit = cv2.resize((label.astype(np.float64) + 1) / 2, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for alignment in expected:
            direct = direct_depth_errors(unit, truth, mask, key, alignment)
            expected[alignment].append(direct)
            for error, value in direct.items():
                assert found[alignment][error] == pytest.approx(value, rel=2e-5), (alignment, error)
    means = summarise(benchmark, list(NAMES[key]), results, 2)
    for alignment, rows in expected.items():
        for error in rows[0]:
            assert means[alignment][error] == pytest.approx(np.mean([row[error] for row in rows]), rel=2e-5)
            assert means[f"{alignment}, rank means of 2"][error] == pytest.approx(means[alignment][error])


def stored_normals(key: str, number: int) -> np.ndarray:
    """DSINE's unit vectors, zero where there is none; the two images differ in size."""
    rng = np.random.default_rng([9, len(key), number])
    vectors = rng.normal(size=(*SIZES[key][number], 3)) + [0, 0, 1.5]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[rng.random(vectors.shape[:2]) < 0.2] = 0
    return vectors


@pytest.fixture(scope="module")
def normals_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    truths = {key: [stored_normals(key, n) for n in range(2)] for key in NORMAL_KEYS}
    return write_normal_archive(tmp_path_factory.mktemp("normals"), truths)


@pytest.mark.parametrize("key", NORMAL_KEYS)
def test_normal_benchmarks_against_a_direct_computation(normals_archive: Path, key: str) -> None:
    benchmark = BENCHMARKS[key]
    with Archive(normals_archive) as archive:
        members = benchmark.find(archive)
        assert [member.name for member in members] == list(NAMES[key])
        samples = [benchmark.read(archive, member) for member in members]
    results, pooled, per_image = {}, [], []
    for number, sample in enumerate(samples):
        truth = stored_normals(key, number)
        mask = np.abs(truth).sum(-1) > 0
        if key.endswith("-normal"):
            truth = stored_colours(truth) / 255 * 2 - 1
        np.testing.assert_allclose(sample.image.numpy(), picture(key, number) / 255, atol=1e-6)
        assert sample.mask.numpy().tolist() == mask.tolist()
        np.testing.assert_allclose(sample.truth.numpy(), -truth, atol=1e-6)
        rng = np.random.default_rng([4, number])
        small = rng.normal(0, 1, (truth.shape[0] // 2, truth.shape[1] // 2, 3)) + [0, 0, 2]
        predicted = -torch.from_numpy(small).float()  # in OpenCV axes, of no particular length
        results[sample.name] = score_normal(Estimate(normal=predicted), sample)
        big = cv2.resize(small.astype(np.float32), truth.shape[1::-1], interpolation=cv2.INTER_LINEAR).astype(np.float64)
        cosine = (big * truth).sum(-1) / np.linalg.norm(big, axis=-1) / np.maximum(np.linalg.norm(truth, axis=-1), 1e-9)
        errors = np.degrees(np.arccos(np.clip(cosine, -1, 1)))[mask]
        assert unpack(results[sample.name]).pixels == mask.sum()
        pooled.append(errors)
        per_image.append(errors)
    means = summarise(benchmark, list(NAMES[key]), results, 1)
    everything = np.concatenate(pooled)
    thresholds = (5, 7.5, 11.25, 22.5, 30)
    for kind, parts in (("pooled", [everything]), ("per image", per_image)):
        found = means[kind]
        assert found["mean"] == pytest.approx(np.mean([e.mean() for e in parts]), rel=1e-6)
        assert found["median"] == pytest.approx(np.mean([np.median(e) for e in parts]), abs=0.01)
        assert found["rmse"] == pytest.approx(np.mean([np.sqrt((e**2).mean()) for e in parts]), rel=1e-6)
        for t in thresholds:
            assert found[f"within_{t:g}"] == pytest.approx(np.mean([(e < t).mean() for e in parts]), abs=1e-9)
    assert abs(means["pooled"]["mean"] - means["per image"]["mean"]) > 1e-3  # the images differ in size


def test_pooling_many_pictures_is_pooling_their_pixels() -> None:
    from train.bench.angles import collect

    rng = np.random.default_rng(0)
    parts = [rng.gamma(2, 8, 20001 + 10 * n).clip(0, 180) for n in range(3)]
    whole = collect(torch.from_numpy(parts[0])) + collect(torch.from_numpy(parts[1])) + collect(torch.from_numpy(parts[2]))
    every = np.concatenate(parts)
    found = normal_row(unpack(whole.packed()).summary())
    assert found["mean"] == pytest.approx(every.mean(), rel=1e-12)
    assert found["rmse"] == pytest.approx(np.sqrt((every**2).mean()), rel=1e-12)
    assert found["median"] == pytest.approx(np.median(every), abs=2e-3)
    for values in ([10.0, 20.0], [10.0, 20.0, 30.0], [0.0, 0.0], [180.0]):
        found = collect(torch.tensor(values)).summary().median
        assert found == pytest.approx(np.median(values), abs=0.01)


def test_a_prediction_without_direction_is_not_a_perfect_one(normals_archive: Path) -> None:
    benchmark = BENCHMARKS["ibims"]
    with Archive(normals_archive) as archive:
        sample = benchmark.read(archive, benchmark.find(archive)[0])
    result = unpack(score_normal(Estimate(normal=torch.zeros(20, 30, 3)), sample))
    assert result.total == pytest.approx(90 * result.pixels)


def test_the_columns_that_marigold_fits_on() -> None:
    full = fitted_columns(6048, 4032, 1024)
    assert int(full.sum()) == 1024 and full[:12].tolist() == [True] + [False] * 4 + [True] + [False] * 5 + [True]
    assert bool(fitted_columns(1024, 768, 1024).all()) and bool(fitted_columns(6048, 4032, 0).all())


def test_a_published_list_chooses_and_orders(tmp_path: Path) -> None:
    path = write_depth_archive(tmp_path, "kitti", [stored_depth("kitti", n) for n in range(2)])
    first, second = NAMES["kitti"]
    lines = [f"{second}.png d/groundtruth/1.png 721.5", f"{first[:-2]}75.png None 721.5", "", f"{first}.png d/2.png 721.5"]
    with Archive(path) as archive:
        found = BENCHMARKS["kitti"].find(archive)
    assert [m.name for m in chosen(found, lines, "list.txt")] == [second, first]
    with pytest.raises(ValueError, match=r"list.txt: lists 'a/b.png'"):
        chosen(found, ["a/b.png c.png"], "list.txt")
    with pytest.raises(ValueError, match="no image"):
        chosen(found, [""], "list.txt")


def test_damaged_and_foreign_archives_are_named(tmp_path: Path, normals_archive: Path) -> None:
    path = write_depth_archive(tmp_path, "scannet-depth", [stored_depth("scannet-depth", n) for n in range(2)])
    with Archive(path) as archive, pytest.raises(ValueError, match="no image lies where"):
        BENCHMARKS["kitti"].find(archive)
    with Archive(path) as archive, pytest.raises(FileNotFoundError, match="holds no file 'x'"):
        archive.read("x")
    with Archive(normals_archive) as archive, pytest.raises(ValueError, match="holds dsine_eval"):
        BENCHMARKS["diode"].find(archive)
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(path, "x")
    with pytest.raises(ValueError, match="decompressed"):
        Archive(packed)
    with tarfile.open(path) as tar:
        end = max(entry.offset_data for entry in tar if entry.size > 100) + 50
    cut = tmp_path / "cut.tar"
    cut.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match="download"), Archive(cut) as archive:
        for name in archive.names:
            archive.read(name)
    with pytest.raises(FileNotFoundError, match="no such archive"):
        Archive(tmp_path / "absent.tar")


def test_an_unpacked_archive_reads_the_same(tmp_path: Path) -> None:
    path = write_depth_archive(tmp_path, "diode", [stored_depth("diode", n) for n in range(2)])
    folder = tmp_path / "unpacked"
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    with Archive(path) as packed, Archive(folder) as unpacked:
        assert packed.names == unpacked.names
        assert all(packed.read(name) == unpacked.read(name) for name in packed.names)


def test_benchmarks_are_chosen_by_name_or_group() -> None:
    assert [b.key for b in select(["normal", "kitti"])] == ["kitti", *NORMAL_KEYS]
    assert [b.key for b in select(["all"])] == list(BENCHMARKS)
    assert [b.images for b in BENCHMARKS.values()] == [654, 652, 454, 800, 771, 654, 300, 100, 1064]
    with pytest.raises(ValueError, match="'nyu' is unknown"):
        select(["nyu"])
