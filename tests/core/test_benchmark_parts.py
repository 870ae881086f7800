"""What the benchmarks are made of: clocks, turns, memory, the document they write, and seeded weights."""

from __future__ import annotations

import argparse
import time

import pytest
import torch

from benchmarks import cost, gpu, models, report
from benchmarks.gpu import VARIANTS
from benchmarks.gpu_measuring import Measured, Record
from benchmarks.scenes import over_scenes
from benchmarks.sizes import RELEASED, TINY
from benchmarks.timing import Clock, PeakMemory, interleave, medians, memory_now, module_bytes


def test_a_clock_adds_up_the_visits_of_a_stage() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.stage("decode"):
            time.sleep(0.01)
    with clock.stage("encode"):
        pass
    assert 0.02 <= clock.seconds["decode"] < 1
    assert clock.total == pytest.approx(sum(clock.seconds.values()))
    # Sleeping takes no processor.
    assert clock.processor["decode"] < 0.02
    clock.move(0.01, 0.0, source="decode", target="connector")
    assert clock.seconds["connector"] == 0.01
    assert clock.seconds["decode"] >= 0.01


def test_contenders_take_turns_and_each_begins_once() -> None:
    order: list[str] = []
    contenders = {name: (lambda clock, name=name: order.append(name)) for name in "abc"}
    clocks = interleave(contenders, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(found) for name, found in clocks.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_median_is_taken_by_stage() -> None:
    clocks = [Clock(seconds={"encode": e, "decode": d}) for e, d in ((1.0, 9.0), (2.0, 2.0), (9.0, 1.0))]
    assert medians(clocks) == {"encode": 2.0, "decode": 2.0, "whole": 10.0}


@pytest.mark.skipif(not memory_now(), reason="no /proc on this system")
def test_peak_memory_sees_what_was_there_and_gone() -> None:
    with PeakMemory() as memory:
        block = torch.ones(64 * 2**20 // 4)
        time.sleep(0.05)
        del block
    assert memory.peak["own"] - memory.before["own"] >= 60 * 2**20


def test_module_bytes_counts_each_dtype_by_its_size() -> None:
    module = torch.nn.Linear(3, 5).to(torch.bfloat16)
    assert module_bytes(module) == 2 * (15 + 5)


def test_a_section_replaces_itself_and_leaves_the_others(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "docs" / "benchmarks.md")
    report.section("gpu", "GPU", "first \\1", "command", write=True)
    report.section("cpu", "CPU", "figures", "command", write=True, where="a machine")
    report.section("gpu", "GPU", "second", "command", write=True)
    text = report.DOCUMENT.read_text()
    assert "first" not in text
    assert text.index("## CPU") < text.index("## GPU")
    assert text.count("<!-- begin ") == text.count("<!-- end ") == 2
    assert "a machine" in text
    assert "second" in capsys.readouterr().out
    assert [path.name for path in report.DOCUMENT.parent.iterdir()] == ["benchmarks.md"]


def test_another_document_keeps_its_introduction_and_its_order(tmp_path) -> None:
    path = tmp_path / "geometry.md"
    path.write_text("# Geometry\n\nBy hand.\n")
    for key, text in (("walls", "old"), ("angles", "figures"), ("walls", "new")):
        report.section(key, key.title(), text, "command", write=True, document=path)
    text = path.read_text()
    assert text.startswith("# Geometry\n\nBy hand.\n\n<!-- begin walls -->")
    assert "old" not in text
    assert text.index("## Walls") < text.index("## Angles")


def test_scenes_that_are_measured_already_are_not_measured_again(tmp_path) -> None:
    seen: list[int] = []

    def measure(number: int, height: int, width: int) -> dict[str, float]:
        seen.append(number)
        return {"number": float(number)} if number != 1 else {}

    first = over_scenes(measure, 2, 48, 64, 1, tmp_path / "kept")
    assert first == {"number": [0.0]}
    assert over_scenes(measure, 4, 48, 64, 1, tmp_path / "kept") == {"number": [0.0, 2.0, 3.0]}
    assert seen == [0, 1, 2, 3]
    over_scenes(measure, 1, 48, 128, 1, tmp_path / "kept")
    assert seen[-1] == 0, "another size is another measurement"


def test_weights_are_a_function_of_their_name() -> None:
    first, second = models.transformer(TINY), models.transformer(TINY)
    name = "double_blocks.0.img_attn.qkv.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], first["double_blocks.0.txt_attn.qkv.weight"])
    assert first.meta(name).shape == first[name].shape
    # Scaled by the fan-in, so that random networks of any depth stay finite.
    assert float(first[name].std()) == pytest.approx(256**-0.5, rel=0.02)


def test_padding_of_the_prompt_repeats_itself() -> None:
    embeds, mask = models.prompt(TINY)
    assert int(mask.sum()) == TINY.real_tokens
    assert len({tuple(row.tolist()) for row in embeds}) == TINY.distinct_tokens


SHAPES = ((48, 64), (96, 128), (192, 256))


def test_a_power_law_is_found_and_one_size_has_none() -> None:
    assert cost.exponent(SHAPES, [2.0, 99.0, 2.0 * 16**1.3]) == pytest.approx(1.3)
    assert cost.exponent(SHAPES[:1], [2.0]) != cost.exponent(SHAPES[:1], [2.0])
    assert cost.parse_shape("512x384") == (384, 512)
    for text in ("512", "512x384x3", "510x384", "0x16", "axb"):
        with pytest.raises(argparse.ArgumentTypeError, match="multiples of 16"):
            cost.parse_shape(text)


def test_the_cost_table_counts_the_released_size() -> None:
    """Weights in GiB and T MACs against sums by hand: 12.428 B parameters, of which 3.246 B and 0.537 B disappear."""
    rows = {row[0]: row[1:] for row in cost.counted_table(RELEASED, ((384, 512), (768, 1024), (1536, 2048)), False, 2).rows}
    gib = {title: float(row[-1]) for title, row in rows.items()}
    autoencoder = 4 * 83.82e6
    assert gib["reference's procedure"] == pytest.approx((2 * 12.4278e9 + autoencoder) / 2**30, abs=0.01)
    assert gib["ours: one copy, cached conditioning"] == pytest.approx((2 * 11.891e9 + autoencoder) / 2**30, abs=0.02)
    assert gib["ours, folded"] == pytest.approx((2 * 8.6445e9 + autoencoder) / 2**30, abs=0.02)
    assert gib["ours, folded, fp8"] == pytest.approx((8.607e9 + 2 * 0.0375e9 + autoencoder) / 2**30, abs=0.02)
    assert rows["reference's procedure"][1] == "129.9" and rows["ours, folded"][1] == "69.4"
    first, last = (float(text) for text in rows["ours, folded"][3].split(" / "))
    assert first < 1 < last < 2
    assert "59.9 T" in cost.paper_line() and cost.paper_line().count("28.8") == 1


def test_latency_and_memory_are_medians_and_first_peaks() -> None:
    runs = {
        name: {shape: [cost.Run(factor * n * t, n * t, (500 + 100 * n + 7 * k) * 2**20) for k, t in enumerate((1.0, 2.0, 9.0))]
               for n, shape in zip((1, 4, 16), SHAPES, strict=True)}
        for name, factor in (("reference", 4.0), ("folded", 2.0))
    }  # fmt: skip
    seconds = cost.latency_table(TINY, SHAPES, runs, True).rows
    assert seconds[0][1:4] == ["8.00", "32.00", "128.00"] and seconds[1][1:4] == ["4.00", "16.00", "64.00"]
    assert seconds[1][4].startswith("2.00 / 1.00 / ") and seconds[1][5].startswith("1.00 / ")
    ready = {name: cost.Ready(weights * 2**20, 6, "") for name, weights in (("reference", 90), ("folded", 60))}
    memory = cost.memory_table(SHAPES, ready, runs).rows
    assert memory[1][1:5] == ["60", "600", "900", "2,100"] and memory[0][1] == "90"
    assert float(memory[1][5].replace(",", "")) == pytest.approx(1500 / ((192 * 256 - 48 * 64) / 1e6), abs=1)


def test_a_record_of_a_gpu_run_comes_back_whole_and_is_shown_from_its_file(tmp_path, capsys) -> None:
    """Also of a run in which a variant did not fit the small card, and one that was not tried there."""
    stages = {"encode": 0.1, "transformer": 0.4, "decode": 0.2, "geometry": 0.01, "whole": 0.71}
    found = [
        Measured(VARIANTS["reference"], stages | {"connector": 0.1}, 30 * 2**30, 640),
        Measured(VARIANTS["bf16"], stages, 20 * 2**30, 640, {"decode": 20 * 2**30}, {"card": 24 * 2**30}, 2.0, 3.0),
    ]  # fmt: skip
    record = Record("python -m benchmarks.gpu", "2026-01-02", "a card", True, RELEASED.name, 1024, 768, 5, "", 7e14, 8192, found)
    path = tmp_path / "kept" / "gpu.json"
    record.write(path)
    assert Record.read(path) == record
    assert [p.name for p in path.parent.iterdir()] == ["gpu.json"]
    gpu.show(Record.read(path), write=False)
    shown = capsys.readouterr().out
    assert "out of memory" in shown and "peak 20.0 GiB (under 22), held" in shown and "on 2026-01-02. a card" in shown
    assert "1.25 times (at least 2.0), NOT HELD" in shown
