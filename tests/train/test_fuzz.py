"""Damaged files for every reader, the same ones in every run; and that the fuzzer finds what it is there to find."""

from __future__ import annotations

import random

import pytest

from tests.harness.bad_readers import TARGETS, WHOLE
from tools.fuzz.campaign import run
from tools.fuzz.mutations import MUTATIONS, mutate

#: One round is one input for each reader.
ROUNDS = 15


def test_every_reader_survives_damage() -> None:
    outcome = run(seed=20, seconds=600, inputs=16 * ROUNDS, patience=300)
    assert outcome.failures == []
    assert outcome.workers == 1
    rows = outcome.table()
    assert len(rows) == 16, "readers"
    assert all(count >= ROUNDS and accepted and refused for _, count, accepted, refused, _ in rows), rows


@pytest.mark.parametrize("fault", sorted(set(TARGETS) - {"refused"}))
def test_every_fault_is_found_and_survived(fault: str) -> None:
    outcome = run(seed=1, seconds=120, inputs=2, targets=[fault], patience=3, module="tests.harness.bad_readers")
    assert [(f.number, f.verdict) for f in outcome.failures] == [(0, fault), (1, fault)]
    assert outcome.inputs == 3, "the whole file, accepted, and two damaged ones"
    assert outcome.workers == (2 if fault in ("crash", "hang") else 1)


def test_an_honest_reader_passes() -> None:
    outcome = run(seed=1, seconds=120, inputs=20, targets=["refused"], patience=60, module="tests.harness.bad_readers")
    assert outcome.failures == []
    assert outcome.counts["refused", "refused"] >= 18


@pytest.mark.parametrize("suffix", [*MUTATIONS, ".bin"])
def test_damage_is_repeatable_and_never_fails(suffix: str) -> None:
    for number in range(50):
        data = random.Random(number).randbytes(number * 3) + (WHOLE if number % 2 else b"\x89PNG\r\n\x1a\n[a]\nb = 1\n")
        first, second = (mutate(f"file{suffix}", data, random.Random(number)) for _ in range(2))
        assert first == second
        assert len(first) < 10 * len(data) + 200_000
