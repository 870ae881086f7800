"""The arithmetic and the document of the soak, on numbers whose answer is known."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from PIL import Image

from tools.soak import plans, report
from tools.soak.endurance import resident, slope
from tools.soak.restarts import unreadable
from tools.soak.result import Result


def noisy(growth: float, seed: int, count: int = 450) -> list[float]:
    """Memory that creeps, with noise whose neighbours are alike, as memory has."""
    chance, level, found = random.Random(seed), 0.0, []
    for number in range(count):
        level = 0.9 * level + chance.gauss(0, 3)
        found.append(1000 + growth * number / 100 + level)
    return found


def test_a_straight_line_is_found_exactly():
    found = slope([100 + 0.05 * n for n in range(450)])
    assert found.growth == pytest.approx(5.0)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.upward


def test_noise_alone_is_rarely_a_slope_and_a_leak_always_is():
    """One-sided 95 %: about one in twenty series without a leak may say upward."""
    assert sum(slope(noisy(0, seed)).upward for seed in range(200)) <= 24
    assert all(slope(noisy(20, seed)).upward for seed in range(50))
    assert not any(slope(noisy(-20, seed)).upward for seed in range(50))
    with pytest.raises(ValueError, match="too few"):
        slope([1.0] * 17)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only")
def test_memory_of_a_process():
    """Of another process, which is new: this one's allocator may have the memory already."""
    program = "import sys; sys.stdin.readline(); block = b'x' * (64 * 2**20); print(len(block), flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", f"print(0, flush=True); {program}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "0\n"
        before = resident(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"{64 * 2**20}\n"
        assert 60 < resident(child.pid) - before < 70
        child.stdin.write("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_pytorch_keeps_a_plan_of_each_size_unless_it_is_told_not_to():
    """Of 128 sizes that it has not seen; both limits are read by PyTorch itself, under these names."""
    assert plans.growth({}, 256)[1] > 2
    assert abs(plans.growth(plans.STEADY, 256)[1]) < 0.5


def test_rows_are_replaced_one_by_one(tmp_path, monkeypatch):
    document = tmp_path / "reliability.md"
    monkeypatch.setattr(report, "DOCUMENT", document)
    document.write_text("# A\n\n<!-- begin soak -->\n<!-- end soak -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no table"):
        report.keep("x", Result("x"))
    document.write_text("# A\n\n<!-- begin soak -->\n\n<!-- end soak -->\n\nend\n", encoding="utf-8")
    report.keep("kills", Result("killed", "10 kills", "all | well", [], 90))
    report.keep("names", Result("names", "größe 深度", "read", ["one"], 30))
    report.keep("kills", Result("killed", "20 kills", "well", [], 90))
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# A\n\n<!-- begin soak -->\n| check |") and text.endswith("<!-- end soak -->\n\nend\n")
    assert "10 kills" not in text and text.count("\n| kills | 20 kills | well | 0 |") == 1
    assert "| names | größe 深度 | read | 1 |" in text


def test_unfinished_and_hidden_files_are_seen(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "whole.png")
    assert unreadable(tmp_path) == []
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "half.safetensors").write_bytes(b"\x10")
    (tmp_path / ".part-x.exr").write_bytes(b"")
    assert sorted(line.partition(":")[0] for line in unreadable(tmp_path)) == [".part-x.exr", "half.npz", "half.png", "half.safetensors"]


def test_the_picture_of_memory(tmp_path):
    report.draw_memory(noisy(0, 1), 50, tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size == (900, 320)
        colours = {colour for _, colour in picture.getcolors(100_000)}
    assert {(0x1F, 0x4E, 0x9C), (0xAA, 0xAA, 0xAA)} <= colours
