"""All benchmarks, in the order of the paper's columns. A new one is one more reader file and one more line here."""

from __future__ import annotations

from train.bench import (
    diode,
    eth3d,
    ibims,
    kitti,
    nyuv2_depth,
    nyuv2_normal,
    scannet_depth,
    scannet_normal,
    sintel,
)
from train.bench.protocol import DEPTH, NORMAL, Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    reader.BENCHMARK.key: reader.BENCHMARK
    for reader in (
        nyuv2_depth,
        kitti,
        eth3d,
        scannet_depth,
        diode,
        nyuv2_normal,
        scannet_normal,
        ibims,
        sintel,
    )
}


def select(names: list[str]) -> list[Benchmark]:
    """Benchmarks by key; "depth", "normal" and "all" stand for several. Raises ValueError for an unknown name."""
    groups = {DEPTH: {DEPTH}, NORMAL: {NORMAL}, "all": {DEPTH, NORMAL}}
    for name in names:
        if name not in BENCHMARKS and name not in groups:
            known = ", ".join([*BENCHMARKS, *groups])
            raise ValueError(f"benchmark '{name}' is unknown; expected some of {known}")
    wanted = {key for key in BENCHMARKS if key in names}
    wanted |= {key for key, b in BENCHMARKS.items() if any(b.task in groups.get(name, ()) for name in names)}
    return [benchmark for key, benchmark in BENCHMARKS.items() if key in wanted]
