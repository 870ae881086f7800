"""Processes of a run that was begun go on from one state, or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.train.test_processes import _process
from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import FinetuneConfig
from train.run_state import checkpoints


def _note_state(run: Finetuning, rank: int, folder: str) -> None:
    torch.save((run.step, trained(run)), f"{folder}/state{rank}")


def _go_on(rank: int, config: FinetuneConfig, port: int, folder: str) -> None:
    """A process on a machine of its own: `out` is below the folder in which it was started."""
    os.chdir(Path(folder, f"machine{rank}"))
    try:
        _process(rank, _note_state, config, port, folder)
    except ValueError as error:
        Path(folder, f"refused{rank}").write_text(str(error))


def on_two_machines(config: FinetuneConfig, folder: Path) -> list[str]:
    """What each of them is refused with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_go_on, (config, port, str(folder)), nprocs=2, start_method="fork")
    return [path.read_text() for path in sorted(folder.glob("refused*"))]


@pytest.fixture
def begun(bases, tmp_path, monkeypatch) -> FinetuneConfig:  # noqa: F811
    """A run that the first machine stopped after two of its steps; the second machine has nothing of it."""
    for machine in ("machine0", "machine1"):
        (tmp_path / machine).mkdir()
    monkeypatch.chdir(tmp_path / "machine0")
    config = configuration(bases["whole"], Path("out"), dispersive=DispersiveConfig(weight=0))
    Finetuning(config).run(until=2)
    return config


def copied(tmp_path: Path, config: FinetuneConfig) -> Path:
    """The newest checkpoint, alone, on the second machine."""
    newest = checkpoints(tmp_path / "machine0" / config.folder)[-1]
    other = tmp_path / "machine1" / config.folder
    other.mkdir(parents=True)
    return Path(shutil.copy(newest, other))


def test_a_machine_without_the_checkpoint_stops_all(begun, tmp_path):
    first, second = on_two_machines(begun, tmp_path)
    assert first == second
    assert first.startswith("[out] must be one folder that all machines see")
    assert "process 0 goes on after step 2 (weights " in first
    assert "process 1 begins anew" in first


def test_another_state_of_the_same_step_stops_all(begun, tmp_path):
    file = copied(tmp_path, begun)
    tensors = load_file(file)
    changed = next(key for key in tensors if key.startswith("trained."))
    tensors[changed].view(-1)[0] += 1e-3
    with TensorFile(file) as opened:
        metadata = dict(opened.metadata)
    write_tensors(file, tensors, metadata)
    first, second = on_two_machines(begun, tmp_path)
    assert first == second
    assert "process 1 goes on after step 2 (weights " in first


@pytest.mark.parametrize("shard", [False, True])
def test_the_same_checkpoint_everywhere_is_gone_on_from(begun, tmp_path, shard):
    copied(tmp_path, begun)
    config = dataclasses.replace(begun, base=dataclasses.replace(begun.base, shard=shard))
    assert on_two_machines(config, tmp_path) == []
    (step, weights), (other_step, others) = (torch.load(tmp_path / f"state{rank}", weights_only=True) for rank in range(2))
    assert step == other_step == 2
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
