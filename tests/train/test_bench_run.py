"""`python -m train evaluate`: killed and started again, on two processes, with a checkpoint, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fe2e_core.sizing import fit, from_model, to_model
from train.__main__ import main
from train.bench.registry import BENCHMARKS
from train.bench.run import Evaluation, Job, Plan
from train.bench.store import Store
from train.evaluation import CheckpointPredictor
from train.scenes import render_scene

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 12

KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from train.bench.folder import FolderPredictor
from train.bench.registry import BENCHMARKS
from train.bench.run import Evaluation, Job, Plan

class Killed(FolderPredictor):
    count = 0
    def __call__(self, *arguments):
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*arguments)

archive, predictions, out = map(Path, sys.argv[1:])
plan = Plan((Job(BENCHMARKS["scannet-depth"], archive),))
Evaluation(plan, Killed(predictions, "method"), out).run()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ScanNet archive of procedural scenes, predictions for it, and an uninterrupted run's results."""
    root = tmp_path_factory.mktemp("evaluate")
    folder = root / "predictions" / "scannet-depth"
    with tarfile.open(root / "scannet_val_sampled_800_1.tar", "w") as tar:
        for number in range(IMAGES):
            scene = render_scene(number, 48, 64)
            millimetres = (scene.depth.clamp(0, 20) * 1000).round().numpy().astype(np.uint16)
            files = {
                f"scene0001_00/color/{number:06}.jpg": cv2.imencode(".jpg", scene.image.numpy()[..., ::-1] * 255)[1],
                f"scene0001_00/depth/{number:06}.png": cv2.imencode(".png", millimetres)[1],
            }
            for name, encoded in files.items():
                entry = tarfile.TarInfo("./" + name)
                entry.size = len(encoded.tobytes())
                tar.addfile(entry, io.BytesIO(encoded.tobytes()))
            path = folder / f"scene0001_00/color/{number:06}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).normal(1, 0.05, (24, 32))
            np.save(path, cv2.resize(scene.depth.numpy(), (32, 24)).clip(0.3) / 20 * noise)
    assert main(command(root, root / "whole")) == 0
    return root


def command(root: Path, out: Path, *more: str) -> list[str]:
    predictions = ["--predictions", str(root / "predictions"), "--name", "method"]
    return ["evaluate", "--data", str(root), "--out", str(out), "--cpu", *predictions, *more]


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("scannet-depth.csv", "summary.json", "tables.md")}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_killed_and_restarted_on_two_processes_gives_the_same_files(data: Path, tmp_path: Path) -> None:
    archive, out = data / "scannet_val_sampled_800_1.tar", tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(archive), str(data / "predictions"), str(out)],
        cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    part = out / "parts" / "scannet-depth.0.jsonl"
    assert len(part.read_text().splitlines()) == 2
    with part.open("a") as file:  # the line that was being written when it died
        file.write('{"name": "scene0001_00/color/000002", "result": {"pix')
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "train", *command(data, out)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                            MASTER_PORT=port, ACCELERATE_USE_CPU="true"),
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert results(out) == results(data / "whole")
    assert "AbsRel" in outputs[0][0] and not outputs[1][0]
    assert "11/12" in outputs[0][1] or "12/12" in outputs[0][1] or "6/6" in outputs[0][1]  # progress
    counts = [len([x for x in p.read_text().splitlines() if x.endswith("}")]) for p in sorted(part.parent.iterdir())]
    assert sum(counts) == IMAGES and counts[1] == IMAGES // 2 - 1  # nothing twice; the first process had done 0 and 1


def test_a_limit_is_extended_and_sheets_are_added(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path, "--limit", "3")) == 0
    assert len((tmp_path / "scannet-depth.csv").read_text().splitlines()) == 4
    assert "3 of 800" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    before = (tmp_path / "parts" / "scannet-depth.0.jsonl").read_text()
    assert main(command(data, tmp_path, "--error-maps", "1", "--rank-means", "4")) == 0
    after = (tmp_path / "parts" / "scannet-depth.0.jsonl").read_text()
    assert after.startswith(before)
    sheet = tmp_path / "errors" / "scannet-depth" / "scene0001_00" / "color" / "000000.jpg"
    assert cv2.imread(str(sheet)).shape == (2 * 48 + 4, 2 * 64 + 4, 3)
    assert (tmp_path / "scannet-depth.csv").read_bytes() == (data / "whole" / "scannet-depth.csv").read_bytes()
    assert "log, rank means of 4" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_another_method_is_refused_in_the_same_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, data / "whole", "--alignments", "log")) == 2
    error = capsys.readouterr().err
    assert "alignments: log linear there, log now" in error and "--out" in error


def test_what_is_missing_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, tmp_path / "a", "--benchmarks", "kitti")) == 2
    assert "kitti_eigen_split_test.tar" in capsys.readouterr().err
    assert main(command(data, tmp_path / "b", "--benchmarks", "nyu")) == 2
    assert "'nyu' is unknown" in capsys.readouterr().err
    assert main(command(data, tmp_path / "c", "--list", "scannet=x.txt")) == 2
    assert "expected NAME=PATH" in capsys.readouterr().err
    fewer = tmp_path / "fewer"
    shutil.copytree(data / "predictions", fewer)
    (fewer / "scannet-depth/scene0001_00/color/000005.npy").unlink()
    wanted = ["evaluate", "--data", str(data), "--out", str(tmp_path / "d"), "--predictions", str(fewer)]
    assert main(wanted) == 2
    assert "000005: no prediction" in capsys.readouterr().err
    assert len((tmp_path / "d/parts/scannet-depth.0.jsonl").read_text().splitlines()) == 5
    assert main(["evaluate", "--data", str(tmp_path), "--out", str(tmp_path / "e"), "--predictions", str(fewer)]) == 2
    assert "holds none of the archives" in capsys.readouterr().err


def test_a_published_list_and_an_archive_of_another_name(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed.tar"
    shutil.copy(data / "scannet_val_sampled_800_1.tar", other)
    chosen = tmp_path / "list.txt"
    picked = [f"scene0001_00/color/{n:06}.jpg scene0001_00/depth/{n:06}.png\n" for n in (7, 2)]
    chosen.write_text("".join(picked))
    more = ["--archive", f"scannet-depth={other}", "--list", f"scannet-depth={chosen}"]
    assert main(command(data, tmp_path / "out", *more)) == 0
    names = re.findall(r"^scene\S+?(\d{6})", (tmp_path / "out/scannet-depth.csv").read_text(), re.MULTILINE)
    assert names == ["000007", "000002"]


def test_a_checkpoint_is_evaluated_at_its_own_size(data: Path, tmp_path: Path) -> None:
    nano = ROOT / "models" / "fe2e-nano.safetensors"
    wanted = ["evaluate", "--data", str(data), "--out", str(tmp_path), "--checkpoint", str(nano), "--cpu"]
    assert main([*wanted, "--size", "trained", "--limit", "2"]) == 0
    network = CheckpointPredictor(nano)

    class Reference:
        """The same by way of the other room: resized, one pass, resized back."""

        name, identity = "reference", {"method": "reference"}

        def __call__(self, benchmark, task, name, image, size):
            from train.bench.estimate import Estimate

            frame = fit(*image.shape[:2], "trained", pixels=network.size[0] * network.size[1])
            label, _ = network(to_model(image[None], frame)[0])
            return Estimate(from_model(label[None], frame)[0], label=True)

    plan = Plan((Job(BENCHMARKS["scannet-depth"], data / "scannet_val_sampled_800_1.tar", limit=2),))
    evaluation = Evaluation(plan, Reference(), tmp_path / "reference")
    evaluation.run()
    expected = evaluation.finish().benchmarks["scannet-depth"]["means"]
    found = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["scannet-depth"]["means"]
    for alignment in ("log", "linear"):
        assert found[alignment] == pytest.approx(expected[alignment], rel=1e-3)
    assert 0.005 < found["log"]["abs_rel"] < 0.4
    stored = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert stored["size"] == "trained" and stored["dtype"] == "fp32" and len(stored["fingerprint"]) == 32
    with pytest.raises(ValueError, match="fingerprint"):
        Store(tmp_path, {**{k: v for k, v in stored.items() if k != "format"}, "fingerprint": "another"})
