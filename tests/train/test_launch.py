"""Processes that a launcher starts together are one run, on CPUs as well."""

from __future__ import annotations

import os
import socket
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.train.tiny_run import bases  # noqa: F401 - a fixture
from train.__main__ import main
from train.journal import read_journal

RUN = """
name = "{name}"
out = "{folder}"
[base]
checkpoint = "{base}"
dtype = "fp32"
[dispersive]
block = 1
source = "gather"
[lora]
rank = 4
[training]
steps = 2
warmup = 0
[data]
batch = 2
workers = 0
[[data.source]]
kind = "procedural"
height = 32
width = 48
"""


def _process(rank: int, config: str, port: int, folder: str) -> None:
    """What `torchrun --nproc-per-node 2 -m train lora` starts."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    with open(f"{folder}/{rank}.txt", "w") as out, redirect_stdout(out):
        assert main(["lora", "--config", config]) == 0
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines with CPUs only")
def test_two_processes_on_cpus_are_one_run(bases, tmp_path):  # noqa: F811
    for name in ("together", "alone"):
        (tmp_path / f"{name}.toml").write_text(RUN.format(name=name, folder=tmp_path, base=bases["whole"]))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.start_processes(_process, (str(tmp_path / "together.toml"), port, str(tmp_path)), nprocs=2, start_method="fork")
    assert "step 2/2" in Path(tmp_path / "0.txt").read_text()
    assert Path(tmp_path / "1.txt").read_text() == "", "the first process speaks for all"
    assert main(["lora", "--config", str(tmp_path / "alone.toml")]) == 0
    for ours, theirs in zip(*(read_journal(tmp_path / n / "losses.jsonl") for n in ("together", "alone")), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
