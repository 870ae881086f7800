"""What the benchmarks are made of: clocks, turns, memory, the document they write, and seeded weights."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import models, report
from benchmarks.sizes import TINY
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
