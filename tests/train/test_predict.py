"""`train predict` with the embedded model: exact sizes, every format, bad inputs, being killed, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import tarfile
import time
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fe2e_core.exr import read_exr
from fe2e_core.npz import read_npz
from train.__main__ import main
from train.predictor import GeometryPredictor, SizeChoice
from train.scenes import HELD_OUT, render_scene

MODEL = Path(__file__).parents[2] / "models" / "fe2e-nano.safetensors"


def scene(seed: int, height: int, width: int) -> np.ndarray:
    return render_scene(HELD_OUT + seed, height, width).image.mul(255).round().byte().numpy()


def png(array: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in two folders, a broken one, a clip of eight frames, and two shards of which one has a broken sample."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "sub").mkdir()
    (root / "wide.png").write_bytes(png(scene(1, 45, 110)))
    (root / "sub" / "tall.png").write_bytes(png(scene(2, 90, 61)))
    (root / "broken.png").write_bytes(png(scene(1, 45, 110))[:500])
    writer = cv2.VideoWriter(str(root / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8, (64, 48))
    view = scene(3, 48, 100)
    for number in range(8):
        writer.write(np.ascontiguousarray(view[:, 5 * number : 5 * number + 64, ::-1]))
    writer.release()
    for shard in range(2):
        with tarfile.open(root / f"s-{shard}.tar", "w") as tar:
            for number in range(3):
                data = png(scene(10 * shard + number, 40, 40))
                data = data[:300] if (shard, number) == (1, 1) else data
                for ending, content in ((".png", data), (".cls", b"0")):
                    info = tarfile.TarInfo(f"{shard}/{number:04d}{ending}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
    return root


@pytest.fixture(scope="module")
def predictor() -> GeometryPredictor:
    return GeometryPredictor(MODEL)


def arguments(inputs: Path | list[Path], output: Path, *more: str) -> list[str]:
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return ["predict", str(MODEL), *map(str, inputs), "--output", str(output), "--cpu", "--threads", "1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_format_holds_the_same_geometry_at_the_exact_size(inputs, predictor, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    formats = ("--formats", "npz", "exr", "png16", "pictures", "clay", "--with-image", "--size", "native")
    assert main(arguments(inputs / "wide.png", output, *formats)) == 0
    assert "1 predicted" in capsys.readouterr().out
    assert sorted(contents(output)) == sorted(
        ["predict.json", *(f"wide{e}" for e in (".npz", ".exr", ".log_depth.png", ".normal.png", ".depth_view.png",
                                                ".normal_view.png", ".clay_view.png"))]  # fmt: skip
    )
    image = torch.from_numpy(scene(1, 45, 110).astype(np.float32) / 255)
    torch.set_num_threads(1)
    expected = predictor(image, SizeChoice("native"))
    npz = read_npz(output / "wide.npz")
    for key in ("log_depth", "normal", "mask", "image"):
        assert torch.equal(npz[key], expected[key]), key
    assert npz["log_depth"].shape == (1, 45, 110) and torch.equal(npz["image"][0], image)
    exr = read_exr(output / "wide.exr")
    assert torch.equal(exr["log_depth"], expected["log_depth"]) and torch.equal(exr["normal"], expected["normal"])
    for name, value in (("log_depth", expected["log_depth"][0]), ("normal", expected["normal"][0])):
        stored = cv2.imread(str(output / f"wide.{name}.png"), cv2.IMREAD_UNCHANGED)
        stored = stored if stored.ndim == 2 else stored[..., ::-1]
        decoded = torch.from_numpy(2 * stored.astype(np.float64) / 65535 - 1)
        torch.testing.assert_close(decoded, value.double(), atol=1.6e-5, rtol=0)
    for name in ("depth_view", "normal_view", "clay_view"):
        with Image.open(output / f"wide.{name}.png") as view:
            assert view.size == (110, 45)


def test_a_bad_input_is_listed_and_never_fatal(inputs, tmp_path) -> None:
    output, mended = tmp_path / "out", tmp_path / "broken.png"
    mended.write_bytes((inputs / "broken.png").read_bytes())
    command = arguments([mended, inputs / "wide.png", tmp_path / "gone.mp4"], output)
    assert main(command) == 0
    listed = [line.split("\t") for line in (output / "bad.tsv").read_text().splitlines()]
    assert [line[0] for line in listed] == [str(mended), str(tmp_path / "gone.mp4")]
    assert "not a whole one" in listed[0][1] and "no such file" in listed[1][1]
    assert (output / "wide.npz").exists() and not (output / "broken.npz").exists()
    mended.write_bytes(png(scene(4, 20, 30)))
    assert main(command) == 0
    assert read_npz(output / "broken.npz")["log_depth"].shape == (1, 20, 30)
    assert "broken" not in (output / "bad.tsv").read_text()


def test_only_bad_inputs_is_a_failure(inputs, tmp_path) -> None:
    assert main(arguments(inputs / "broken.png", tmp_path / "out")) == 1


def test_other_settings_and_foreign_folders_are_refused(inputs, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    assert main(arguments(inputs / "wide.png", output)) == 0
    before = contents(output)
    assert main(arguments(inputs / "wide.png", output, "--size", "native")) == 2
    assert "another size" in capsys.readouterr().err
    assert contents(output) == before
    assert main(arguments(inputs / "wide.png", inputs)) == 2
    assert "choose a new folder" in capsys.readouterr().err
    assert main(arguments(inputs / "wide.png", tmp_path / "b", "--every", "0")) == 2
    assert main(["predict", str(inputs / "wide.png"), str(inputs), "--output", str(tmp_path / "c"), "--cpu"]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_every_fourth_frame_and_a_shard_by_itself(inputs, predictor, tmp_path) -> None:
    output = tmp_path / "out"
    assert main(arguments([inputs / "clip.avi", inputs / "s-1.tar"], output, "--every", "4")) == 0
    assert sorted(contents(output / "clip.avi")) == ["000000.npz", "000004.npz"]
    assert "s-1.tar 1/0001\t" in (output / "bad.tsv").read_text()
    with tarfile.open(output / "s-1.tar") as tar:
        assert tar.getnames() == ["1/0000.npz", "1/0002.npz"]
        stored = np.load(BytesIO(tar.extractfile("1/0002.npz").read()))
    expected = predictor(torch.from_numpy(scene(12, 40, 40).astype(np.float32) / 255))
    assert np.array_equal(stored["log_depth"], expected["log_depth"].numpy())
    assert not (output / ".fe2e" / "shards").exists()


def test_bf16_is_close_to_fp32(inputs, predictor) -> None:
    image = torch.from_numpy(scene(1, 45, 110).astype(np.float32) / 255)
    coarse, fine = GeometryPredictor(MODEL, "bf16")(image), predictor(image)
    assert 0 < float((coarse["log_depth"] - fine["log_depth"]).abs().mean()) < 0.02
    assert float((coarse["normal"] * fine["normal"]).sum(-1).mean()) > 0.999


def _process(rank: int, ranks: int, port: int, command: list[str]) -> None:
    """One of several processes, as `accelerate launch` and `torchrun` start them."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # The parent's OpenMP threads do not exist in a forked child, which would wait for them for ever.
    torch.set_num_threads(1)
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}  # fmt: skip
    os._exit(main(command))


def start(ranks: int, command: list[str]) -> list[multiprocessing.Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_process, args=(rank, ranks, port, command)) for rank in range(ranks)]
    for child in children:
        child.start()
    return children


def results(output: Path) -> int:
    """How many there are, wherever they lie."""
    count = len(list(output.rglob("*.npz")))
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            count += len(tar.getnames()) // 3  # .npz, .log_depth.png, .normal.png
    return count


def wait_for_more(output: Path, children: list[multiprocessing.Process], more: int) -> None:
    """Until there are that many results more, or everything is done."""
    wanted = results(output) + more
    deadline = time.monotonic() + 300
    while any(child.is_alive() for child in children) and results(output) < wanted:
        assert time.monotonic() < deadline, "no result in five minutes"
        time.sleep(0.005)


def test_two_processes_killed_and_restarted_leave_the_files_of_one_uninterrupted(inputs, tmp_path) -> None:
    torch.set_num_threads(1)
    one = tmp_path / "one"
    [child] = start(1, arguments(inputs, one, "--formats", "npz", "png16"))
    child.join()
    assert child.exitcode == 0
    two = tmp_path / "two"
    command = arguments(inputs, two, "--formats", "npz", "png16")
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        children = start(2, command)
        wait_for_more(two, children, 2)
        assert all(child.is_alive() for child in children), "done before it could be killed"
        for child in children:
            os.kill(child.pid, kill)
        for child in children:
            child.join()
        assert all(child.exitcode == (130 if kill == signal.SIGTERM else -kill) for child in children)
    children = start(2, command)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    expected, found = contents(one), contents(two)
    assert sorted(found) == sorted(expected)
    assert found == expected
    assert len([name for name in expected if name.endswith(".npz")]) == 2 + 8
    assert json.loads(expected["predict.json"])["checkpoint"] == "fe2e-nano"
