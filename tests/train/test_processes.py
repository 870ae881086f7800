"""Two processes of a run: they give the curve of one with the same batch, and stop together."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState

from fe2e_core.tensorfile import TensorFile
from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train import engine
from train.data.loader import GivenBatch
from train.dispersive import DispersiveConfig
from train.encoding import EncodedBatch
from train.engine import Finetuning
from train.journal import read_journal
from train.recipe import BaseFiles, FinetuneConfig, LoraShape, Objective, ValidationConfig


def frozen_numbers(run: Finetuning) -> int:
    """How many numbers of the base this process holds."""
    parameters = [p for p in run.base.transformer.parameters() if not p.requires_grad]
    return sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters)


def _configured_for_fsdp(**settings) -> Accelerator:
    """accelerate as its FSDP configuration makes it on GPUs. On CPUs it does not look at the configuration."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(fsdp_plugin=plugin, **settings)
    assert accelerator.distributed_type == DistributedType.MULTI_CPU
    accelerator.state.fsdp_plugin = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator


def _process(rank: int, act: Callable[[Finetuning, int, str], None], config: FinetuneConfig, port: int, folder: str) -> None:
    """One of two processes of a run, as `accelerate launch` would start it."""
    # The parent's OpenMP threads do not exist in a forked child, which would wait for them for ever.
    torch.set_num_threads(1)
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}  # fmt: skip
    run = Finetuning(config)
    assert run.accelerator.num_processes == 2
    act(run, rank, folder)
    torch.distributed.destroy_process_group()


def in_two_processes(act: Callable[[Finetuning, int, str], None], config: FinetuneConfig, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_process, (act, config, port, str(folder)), nprocs=2, start_method="fork")


def _train(run: Finetuning, rank: int, folder: str) -> None:
    reports = []
    run.run(reports.append)
    found = ({k: p.detach() for k, p in run.trained}, [dataclasses.asdict(r) for r in reports], frozen_numbers(run))
    torch.save(found, f"{folder}/{rank}.pt")


def _train_on_a_bad_picture(run: Finetuning, rank: int, folder: str) -> None:
    """Only the second process gets one, in its second step; its name and what was raised are left in files."""
    encoded = run._encoded

    def spoiled(given: GivenBatch) -> EncodedBatch:
        batch = encoded(given)
        if rank == 1 and given.number == 1:
            Path(folder, "bad").write_text(batch.names[0])
            batch.depth[0, 0, 0, 0] = torch.inf
        return batch

    run._encoded = spoiled
    with pytest.raises(FloatingPointError) as caught:
        run.run()
    Path(folder, f"raised{rank}").write_text(str(caught.value))


def test_a_bad_number_in_one_process_stops_all_and_names_its_picture(bases, tmp_path):  # noqa: F811
    in_two_processes(_train_on_a_bad_picture, configuration(bases["whole"], tmp_path), tmp_path)
    first, second = ((tmp_path / f"raised{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("step 2: the loss (depth nan, ")
    assert f"in batch 1 ({(tmp_path / 'bad').read_text()})" in first


@pytest.mark.parametrize(
    ("objective", "base"),
    [
        (Objective(), {}),
        (Objective(start="noise", time="random", joint=False, steps=2), {"shard": True}),
        (Objective(), {"shard": True, "dtype": "fp8", "fold": True}),
    ],
)
def test_two_processes_give_the_curve_of_one_with_the_same_batch(bases, tmp_path, objective, base):  # noqa: F811
    files = BaseFiles(**({"checkpoint": str(bases["whole"]), "dtype": "fp32"} | base))
    # a base in eight bits is computed in BF16, where the sums of one picture and of two round differently
    rounding = 1e-5 if files.dtype == "fp32" else 5e-3

    def config(out: str) -> FinetuneConfig:
        config = configuration(bases["whole"], tmp_path / out, objective=objective,
                               lora=LoraShape(rank=4, alpha=2.0, constants=files.fold),
                               dispersive=DispersiveConfig(block=1, source="gather"),
                               validation=ValidationConfig(every=3, pictures=3))  # fmt: skip
        training = dataclasses.replace(config.training, steps=3, accumulate=1 if files.fold else 2)
        return dataclasses.replace(config, base=files, training=training)

    in_two_processes(_train, config("two"), tmp_path)
    one = Finetuning(config("one"))
    reports = []
    one.run(reports.append)
    scores = [read_journal(tmp_path / out / "run" / "validation.jsonl") for out in ("one", "two")]
    assert [row["step"] for row in scores[0]] == [0, 3]
    for row, other in zip(*scores, strict=True):
        assert other == pytest.approx(row, rel=rounding, abs=1e-3)  # delta1 counts pixels
    for rank in range(2):
        tensors, curve, held = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for report, other in zip(reports, curve, strict=True):
            for key in ("depth", "normal", "dispersive", "gradient"):
                assert other[key] == pytest.approx(getattr(report, key), rel=rounding, abs=1e-6), (
                    report.step,
                    key,
                )
        # Adam divides by the gradient's size: where it is nearly nothing, its rounding shows
        close = [
            torch.isclose(tensors[name], value, atol=1e-3, rtol=1e-3).float().mean()
            for name, value in trained(one).items()
        ]
        assert float(torch.stack(close).mean()) > 0.99
        share = held / frozen_numbers(one)
        assert share < 0.52 if files.shard else share == 1
    with TensorFile(tmp_path / "two/run/run.safetensors") as file:
        exported = {key: file[key] for key in file}
    with TensorFile(tmp_path / "one/run/run.safetensors") as file:
        assert exported.keys() == set(file)
        assert all(exported[key].shape == file[key].shape for key in file)


def test_an_fsdp_configuration_of_accelerate_divides_the_base(bases, tmp_path, monkeypatch):  # noqa: F811
    def config(out: str) -> FinetuneConfig:
        config = configuration(bases["whole"], tmp_path / out, dispersive=DispersiveConfig(block=1, source="gather"))
        return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=2))

    one = Finetuning(config("one"))
    reports = []
    one.run(reports.append)
    monkeypatch.setattr(engine, "Accelerator", _configured_for_fsdp)
    in_two_processes(_train, config("two"), tmp_path)
    for rank in range(2):
        _, curve, held = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert held < 0.52 * frozen_numbers(one)
        for report, other in zip(reports, curve, strict=True):
            assert other == pytest.approx(dataclasses.asdict(report), rel=1e-5, abs=1e-6)
