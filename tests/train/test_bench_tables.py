"""Every cell of the tables against its closed form: a predictor that returns the truth, distorted in a known way."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.bench_archives import NAMES, SIZES, write_depth_archive, write_normal_archive
from train.bench.estimate import Estimate
from train.bench.paper import DEPTH_COLUMNS, NORMAL_COLUMNS, TABLE_2, TABLE_3, average_rank
from train.bench.registry import BENCHMARKS
from train.bench.run import Evaluation, Job, Plan, read_report
from train.bench.score import DEPTH_ERRORS
from train.bench.summary import NORMAL_ERRORS
from train.bench.tables import Report, paper_tables

NEAR, FAR = 2.0, 4.0
NOISE = {key: (0.1 + 0.02 * n, 0.2 + 0.02 * n) for n, key in enumerate(DEPTH_COLUMNS)}
"""Distortion of the logarithm, in the two images of each benchmark."""
SMALL, LARGE = 4.0, 20.0
"""Degrees by which normals are turned."""
LEFT_OUT = {"kitti": 1}
"""A row and columns that hold no truth, so that the rest is even: KITTI's crop has an odd number of columns."""

HALF = math.log(FAR / NEAR) / 2
SHRINK = {e: HALF**2 / (HALF**2 + e**2) for pair in NOISE.values() for e in pair}
"""Noise that the fit does not know of flattens its slope by the share of the true variance."""


def stripes(key: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth: rows alternate between NEAR and FAR. Noise: columns alternate between -1 and 1. So all four combinations
    are equally frequent, in any window of even sides."""
    height, width = SIZES[key][number]
    truth = np.repeat(np.where(np.arange(height) % 2 == 0, NEAR, FAR)[:, None], width, axis=1)
    if key == "kitti":  # rows 117 to 320 and columns 43 to 1171 of the crop count: the last column is one too many
        truth[:, {1242: 13, 1224: 4}[width] + 1171] = 0
    return truth, np.repeat(np.where(np.arange(width) % 2 == 0, -1.0, 1.0)[None, :], height, axis=0)


class DistortedTruth:
    """A predictor: ln truth plus or minus a noise as depth, truth turned by a known angle as normals; where no pixel
    counts it says nonsense."""

    name = "distorted truth"
    identity = {"method": "distorted truth"}

    def __init__(self, axes: dict[str, list[np.ndarray]]):
        self._axes = axes

    def __call__(self, benchmark: str, task: str, name: str, image: torch.Tensor, size: tuple[int, int]) -> Estimate:
        number = NAMES[benchmark].index(name)
        if task == "normal":
            return Estimate(normal=torch.from_numpy(self._axes[benchmark][number]).float())
        truth, sign = stripes(benchmark, number)
        if benchmark == "kitti":
            left = {1242: 13, 1224: 4}[truth.shape[1]]
            truth, sign = truth[-352:, left : left + 1216], sign[-352:, left : left + 1216]
        middle = math.log(NEAR * FAR) / 2
        noisy = np.log(np.maximum(truth, 1)) - middle + NOISE[benchmark][number] * sign
        label = np.where(truth > 0, 0.3 + 0.5 * noisy, 0.99)
        return Estimate(torch.from_numpy(label).float(), label=True)


def closed_depth(noise: float, alignment: str) -> dict[str, float]:
    """All errors over the four combinations of truth and noise, fitted by hand."""
    depths, truths = [], []
    for side, sign in product((-1, 1), (-1, 1)):
        truth, x = (NEAR if side < 0 else FAR), side * HALF + sign * noise
        if alignment == "log":
            depth = math.exp(math.log(NEAR * FAR) / 2 + SHRINK[noise] * x)
        else:  # the same logarithmic map, fitted to metres: covariance over variance
            half = (FAR - NEAR) / 2
            depth = (NEAR + FAR) / 2 + half * HALF / (HALF**2 + noise**2) * x
        depths.append(depth)
        truths.append(truth)
    depth, truth = np.array(depths), np.array(truths)
    factor = np.maximum(depth / truth, truth / depth)
    found = {
        "abs_rel": np.abs(depth - truth) / truth,
        "sq_rel": (depth - truth) ** 2 / truth,
        "rmse": (depth - truth) ** 2,
        "log_rmse": np.log(depth / truth) ** 2,
        **{f"delta{power}": factor < 1.25**power for power in (1, 2, 3)},
    }
    return {name: float(np.mean(v) ** (0.5 if name.endswith("rmse") else 1)) for name, v in found.items()}


def turned_normals(key: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(DSINE's truth, the prediction in OpenCV axes): every column but each fourth is turned by SMALL degrees in the
    first image, only every other one in the second; the rest by LARGE. A fifth of the rows counts for nothing."""
    height, width = SIZES[key][number]
    rng = np.random.default_rng(number)
    truth = rng.normal(size=(height, width, 3)) + [0, 0, 2]
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    if key.endswith("-normal"):  # what eight bits leave of it
        truth = ((truth + 1) / 2 * 255).round() / 255 * 2 - 1
    across = np.cross(truth, [0, 1, 0])
    unit = truth / np.linalg.norm(truth, axis=-1, keepdims=True)
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    few = np.arange(width) % (4 if number == 0 else 2) == 0
    angle = np.radians(np.where(few, LARGE, SMALL))[None, :, None]
    predicted = np.cos(angle) * unit + np.sin(angle) * across
    truth[: height // 5] = 0
    predicted[: height // 5] = [1, 0, 0]
    return truth, -predicted


def closed_normals(kind: str, key: str) -> dict[str, float]:
    shares, weights = [], []  # of LARGE
    for number in range(2):
        height, width = SIZES[key][number]
        shares.append(len(range(0, width, 4 if number == 0 else 2)) / width)
        weights.append((height - height // 5) * width)
    if kind == "per image":
        weights = [1, 1]
    share = float(np.average(shares, weights=weights))
    parts = [share] if kind == "pooled" else shares
    within = {f"within_{degrees:g}": 1.0 if degrees > LARGE else 1 - share for degrees in (5, 7.5, 11.25, 22.5, 30)}
    return {
        "mean": (1 - share) * SMALL + share * LARGE,
        # half of each: between the two
        "median": float(np.mean([SMALL if part < 0.5 else (SMALL + LARGE) / 2 for part in parts])),
        "rmse": float(np.mean([math.sqrt((1 - part) * SMALL**2 + part * LARGE**2) for part in parts])),
        **within,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished evaluation of all nine."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    jobs = []
    for key in DEPTH_COLUMNS:
        truths = [stripes(key, number)[0] for number in range(2)]
        jobs.append(Job(BENCHMARKS[key], write_depth_archive(data, key, truths)))
    pairs = {key: [turned_normals(key, number) for number in range(2)] for key in NORMAL_COLUMNS}
    path = write_normal_archive(data, {key: [truth for truth, _ in two] for key, two in pairs.items()})
    jobs += [Job(BENCHMARKS[key], path) for key in NORMAL_COLUMNS]
    predictor = DistortedTruth({key: [predicted for _, predicted in two] for key, two in pairs.items()})
    evaluation = Evaluation(Plan(tuple(jobs), error_maps=1, data="2"), predictor, out)
    evaluation.run()
    evaluation.finish()
    return out


def test_depth_means_are_their_closed_forms(finished: Path) -> None:
    report = read_report(finished)
    for key, alignment in product(DEPTH_COLUMNS, ("log", "linear")):
        for error in DEPTH_ERRORS:
            expected = np.mean([closed_depth(noise, alignment)[error] for noise in NOISE[key]])
            found = report.benchmarks[key]["means"][alignment][error]
            assert found == pytest.approx(expected, abs=2e-6), (key, alignment, error)


def test_normal_means_are_their_closed_forms(finished: Path) -> None:
    report = read_report(finished)
    for key, kind in product(NORMAL_COLUMNS, ("pooled", "per image")):
        for error, expected in closed_normals(kind, key).items():
            found = report.benchmarks[key]["means"][kind][error]
            # eight bits of the stored truth, and the histogram of angles that medians are taken from
            assert found == pytest.approx(expected, abs=0.01 if error == "median" else 2e-4), (key, kind, error)


def table_rows(text: str, title: str) -> dict[str, list[str]]:
    lines = text[text.index(title) :].split("\n\n")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_tables_cells(finished: Path) -> None:
    text = (finished / "tables.md").read_text(encoding="utf-8")
    depth, normal = table_rows(text, "Table 2"), table_rows(text, "Table 3")
    assert list(depth)[-2:] == [
        "**distorted truth**, log alignment (FE2E)",
        "**distorted truth**, linear alignment (Marigold)",
    ]
    for title, alignment in zip(list(depth)[-2:], ("log", "linear"), strict=True):
        means = [
            [float(np.mean([closed_depth(noise, alignment)[e] for noise in NOISE[key]])) for e in ("abs_rel", "delta1")]
            for key in DEPTH_COLUMNS
        ]
        # two images are not the published list: marked, and without a rank
        assert depth[title] == ["2", *(f"{100 * value:.1f}†" for pair in means for value in pair), "-"]
    for kind in ("pooled", "per image"):
        closed = [closed_normals(kind, key) for key in NORMAL_COLUMNS]
        cells = [f"{v:.1f}†" for c in closed for v in (c["mean"], 100 * c["within_11.25"])]
        assert normal[f"**distorted truth**, {kind}"] == ["2", *cells, "-"]
    # the paper's rows as they are printed, dashes included
    assert depth["FE2E (paper)"] == "71K 4.1 97.7 6.6 96.0 3.8 98.7 4.4 97.5 22.8 81.2 1.4".split()
    assert depth["DepthAnything V2"] == "62.6M 4.5 97.9 7.4 94.6 13.1 86.5 - - 26.5 73.4 5.4".split()
    assert normal["DSINE"] == "160K 16.4 59.6 16.2 61.0 17.1 67.4 34.9 21.5 4.6".split()
    assert len(depth) == len(TABLE_2) + 2 and len(normal) == len(TABLE_3) + 2


def test_the_cells_of_all_errors(finished: Path) -> None:
    text = (finished / "tables.md").read_text(encoding="utf-8")
    for key, benchmark in BENCHMARKS.items():
        depth = benchmark.task == "depth"
        lines = text[text.index(f"### {benchmark.title}, {benchmark.task}") :].split("\n\n")[1].splitlines()
        names = DEPTH_ERRORS if depth else NORMAL_ERRORS
        for line, kind in zip(lines[2:], ("log", "linear") if depth else ("pooled", "per image"), strict=True):
            method, averaged, images, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert (method, averaged, images) == ("distorted truth", kind, f"2 of {benchmark.images}")
            both = [closed_depth(noise, kind) for noise in NOISE[key]] if depth else [closed_normals(kind, key)]
            for name, cell in zip(names, cells, strict=True):
                factor = 100 if name.startswith(("delta", "within", "abs_rel")) else 1
                expected = factor * float(np.mean([closed[name] for closed in both]))
                assert float(cell) == pytest.approx(expected, abs=0.011 if name == "median" else 8e-4), (key, kind, name)


def test_ranks_give_the_papers_own() -> None:
    for table in (TABLE_2, TABLE_3):
        for row in table:
            found = average_rank(row.cells, table)
            swapped = {"Lotus-D*": 3.5, "DepthAnything": 3.7} if table is TABLE_2 else {}
            assert found == pytest.approx(swapped.get(row.method, row.rank), abs=0.051), row.method
    best = tuple((1.0, 99.9) for _ in DEPTH_COLUMNS)
    assert average_rank(best, TABLE_2) == 1.0
    assert average_rank((None,) * 5, TABLE_2) is None


def test_csv_holds_every_image(finished: Path) -> None:
    lines = (finished / "kitti.csv").read_text().splitlines()
    head, *rows = [line.split(",") for line in lines]
    assert head[:4] == ["image", "pixels", "log_abs_rel", "log_sq_rel"] and head[-1] == "linear_shift"
    assert [row[0] for row in rows] == list(NAMES["kitti"]) and {row[1] for row in rows} == {str(204 * 1128)}
    for row, noise in zip(rows, NOISE["kitti"], strict=True):
        assert float(row[2]) == pytest.approx(closed_depth(noise, "log")["abs_rel"], abs=1e-6)
        # ln truth = scale * p + shift with p = (0.3 + 0.5 x + 1) / 2
        assert float(row[head.index("log_scale")]) == pytest.approx(4 * SHRINK[noise], rel=1e-5)
    head, *rows = [line.split(",") for line in (finished / "sintel.csv").read_text().splitlines()]
    assert head == ["image", "pixels", *NORMAL_ERRORS] and [row[0] for row in rows] == list(NAMES["sintel"])
    assert float(rows[1][2]) == pytest.approx((SMALL + LARGE) / 2, abs=1e-4)


def test_runs_stand_beside_each_other(finished: Path, tmp_path: Path) -> None:
    archive = write_depth_archive(tmp_path, "diode", [stripes("diode", number)[0] for number in range(2)])
    other = DistortedTruth({})
    other.name, other.identity = "other", {"method": "other"}
    plan = Plan((Job(BENCHMARKS["diode"], archive),), alignments=("disparity",), beside=(finished,))
    evaluation = Evaluation(plan, other, tmp_path / "out")
    evaluation.run()
    evaluation.finish()
    rows = table_rows((tmp_path / "out" / "tables.md").read_text(encoding="utf-8"), "Table 2")
    assert [name for name in rows if "*" in name and "**" in name] == [
        "**other**, disparity alignment (Marigold, for methods that predict disparity)",
        "**distorted truth**, log alignment (FE2E)",
        "**distorted truth**, linear alignment (Marigold)",
    ]
    own = rows["**other**, disparity alignment (Marigold, for methods that predict disparity)"]
    assert own[1:9] == ["-"] * 8 and own[9].endswith("†")


def test_a_complete_row_has_its_rank_among_the_papers() -> None:
    means = {"abs_rel": 0.04, "delta1": 0.98}
    whole = {key: {"images": 9, "listed": 9, "means": {"log": means}} for key in DEPTH_COLUMNS}
    row = table_rows(paper_tables([Report("ours", "1", whole)]) + "\n\n", "Table 2")["**ours**, log alignment (FE2E)"]
    # by hand: AbsRel 4.0 is 1, 1, 2, 1, 1; delta1 98.0 is 2, 1, 2, 2, 1
    assert row == ["1", *["4.0", "98.0"] * 5, "1.4"]
    fewer = {**whole, "diode": {**whole["diode"], "images": 8}}
    assert "4.0† | 98.0† | - |" in paper_tables([Report("ours", "1", fewer)])


def test_error_maps_of_the_first_images(finished: Path) -> None:
    import cv2

    sheets = sorted(path.relative_to(finished).as_posix() for path in (finished / "errors").rglob("*.jpg"))
    assert sheets == sorted(f"errors/{key}/{names[0]}.jpg" for key, names in NAMES.items())
    sheet = cv2.imread(str(finished / f"errors/scannet-normal/{NAMES['scannet-normal'][0]}.jpg"))[..., ::-1].astype(int)
    height, width = SIZES["scannet-normal"][0]
    assert sheet.shape == (2 * height + 4, 2 * width + 4, 3)
    error = sheet[-height:, -width:]
    assert np.abs(error[: height // 5 - 1] - 128).mean() < 8  # nothing counts there: grey
    small, large = error[height // 5 + 2 :, 2], error[height // 5 + 2 :, 0]  # 4 degrees are dark, 20 are bright
    assert small.sum(-1).mean() + 60 < large.sum(-1).mean()
    assert json.loads((finished / "summary.json").read_text())["benchmarks"]["ibims"]["images"] == 2
