"""Fine-tuning on a tiny base: it learns, resumes bit for bit after a kill, stops at NaN, and exports what it
trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fe2e_core.keymaps import flux_to_diffusers
from fe2e_core.lora import Merged
from fe2e_core.tensorfile import TensorFile
from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train import run_state
from train.cache import CacheConfig
from train.convert import read_lora
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import (
    BaseFiles,
    FinetuneConfig,
    LoraShape,
    Objective,
    Training,
    ValidationConfig,
    WatchConfig,
)


def test_a_run_learns_and_exports_what_it_trained(bases, tmp_path):  # noqa: F811
    config = configuration(
        bases["whole"], tmp_path, training=Training(steps=12, warmup=0, learning_rate=3e-3, keep=2)
    )
    run = Finetuning(config)
    reports = []
    path = run.run(reports.append)
    assert [r.step for r in reports] == list(range(1, 13))
    early, late = (sum(r.depth + r.normal for r in part) for part in (reports[:3], reports[-3:]))
    assert late < 0.9 * early
    assert all(r.dispersive < 0 for r in reports)
    with TensorFile(bases["whole"]) as file:
        base = {k.removeprefix("transformer."): file[k] for k in file if k.startswith("transformer.")}
    modules, metadata = read_lora(path)
    linears = [k for k in base if k.endswith(".weight") and "_blocks." in k and ".norm." not in k]
    assert sorted(f"{m}.weight" for m in modules) == sorted(linears)
    assert metadata["ss_steps"] == "12"
    assert len(metadata["fe2e.base_sha256"]) == 64
    ours = flux_to_diffusers(dict(Merged(base, modules)))
    for name in (
        "transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.1.proj_mlp",
        "transformer_blocks.0.norm1.linear",
    ):
        layer = run.base.transformer.get_submodule(name)
        theirs = layer.weight + layer.get_delta_weight("default")
        torch.testing.assert_close(ours[f"{name}.weight"], theirs, atol=1e-6, rtol=1e-5)
        assert bool(layer.get_delta_weight("default").any())


def test_resuming_gives_the_same_bits(bases, tmp_path):  # noqa: F811
    straight = Finetuning(configuration(bases["whole"], tmp_path / "a"))
    straight.run()
    parted = configuration(bases["whole"], tmp_path / "b")
    Finetuning(parted).run(until=1)
    Finetuning(parted).run(until=3)
    last = Finetuning(parted)
    assert last.step == 3
    last.run()
    expected = trained(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(last).items())
    assert [path.name for path in run_state.checkpoints(parted.folder)] == [
        "step-00000003.safetensors",
        "step-00000004.safetensors",
    ]
    other = dataclasses.replace(parted, lora=LoraShape(rank=4, alpha=4.0))
    with pytest.raises(ValueError, match=r"lora\.alpha was 2\.0 and is 4\.0"):
        Finetuning(other)


@pytest.fixture
def one_thread():
    """Same bits in parent and forked child, which must not wait for OpenMP threads it does not have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def everything_on(base: Path, out: Path, **training) -> FinetuneConfig:
    """A run with all that a checkpoint has to remember."""
    values = {"steps": 24, "warmup": 0, "learning_rate": 3e-3, "save_every": 1, "keep": 2, "ema": 0.9}
    return configuration(base, out, training=Training(**(values | training)),
                         validation=ValidationConfig(every=2, pictures=1, drawn=1), watch=WatchConfig(),
                         cache=CacheConfig(str(out / "cache")))  # fmt: skip


def written(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of all safetensors files of a run."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with TensorFile(path) as file:
            found[path.name] = {key: file[key] for key in file}
    return found


def kind(name: str) -> str:
    """What a file of a run is: checkpoints of all steps are alike."""
    return "step" if name.startswith("step-") else name


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_ten_times_goes_on_to_the_same_bits(bases, tmp_path):  # noqa: F811
    begun = time.monotonic()
    straight = Finetuning(everything_on(bases["whole"], tmp_path / "a"))
    started = time.monotonic() - begun
    straight.run()
    step = (time.monotonic() - begun - started) / 24
    whole = {kind(name): shapes(tensors) for name, tensors in written(straight.config.folder).items()}
    config, rng = everything_on(bases["whole"], tmp_path / "b"), random.Random(7)
    folder, reached = config.folder, set()
    for attempt in range(10):
        before = run_state.checkpoints(folder)
        child = os.fork()
        if child == 0:
            try:
                Finetuning(config).run()
            finally:
                os._exit(0)
        if attempt % 4 == 3:  # at any moment, that of starting included
            time.sleep(rng.uniform(0, started))
        else:  # within a step after its first checkpoint
            while run_state.checkpoints(folder) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, step))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the run was over before it could be killed"
        for name, tensors in written(folder).items():
            assert shapes(tensors) == whole[kind(name)], name
        reached |= {path.name for path in run_state.checkpoints(folder)}
    assert len(reached) >= 7, "the children were killed before they did anything"
    Finetuning(config).run()
    expected, found = written(straight.config.folder), written(folder)
    assert expected.keys() == found.keys()
    assert {"best.safetensors", "run.safetensors", "run_best.safetensors"} < found.keys()
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        different = [key for key, tensor in tensors.items() if not torch.equal(tensor, found[name][key])]
        assert different == [], name
    for name in ("losses.jsonl", "validation.jsonl"):
        assert (folder / name).read_text() == (straight.config.folder / name).read_text()


def test_queue_and_accumulation_resume_exactly(bases, tmp_path):  # noqa: F811
    def config(out: Path) -> FinetuneConfig:
        return configuration(bases["whole"], out, dispersive=DispersiveConfig(block=1, source="queue", queue=3),
                             training=Training(steps=3, warmup=1, accumulate=2, schedule="cosine", save_every=1))  # fmt: skip

    straight = Finetuning(config(tmp_path / "a"))
    reports = []
    straight.run(reports.append)
    Finetuning(config(tmp_path / "b")).run(until=2)
    last = Finetuning(config(tmp_path / "b"))
    again = []
    last.run(again.append)
    assert again == reports[2:]
    expected = trained(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(last).items())
    lines = (config(tmp_path / "b").folder / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def gradients_before_each_step(run: Finetuning) -> list[list[torch.Tensor]]:
    """What the optimizer is given, step by step, once the run has run."""
    found = []
    run.optimizer.register_step_pre_hook(lambda *given: found.append([p.grad.clone() for _, p in run.trained]))
    return found


def test_two_batches_of_one_train_like_one_batch_of_two(bases, tmp_path, monkeypatch):  # noqa: F811
    """Every latent counts here: otherwise each batch is averaged over its own mask, which is not the mean over both."""
    encoded = Finetuning._encoded

    def unmasked(run: Finetuning, given):
        batch = encoded(run, given)
        whole = torch.ones_like(batch.depth_mask)
        return dataclasses.replace(batch, depth_mask=whole, normal_mask=whole)

    monkeypatch.setattr(Finetuning, "_encoded", unmasked)
    runs, reports, gradients = {}, {}, {}
    for pictures, times in ((2, 1), (1, 2)):
        config = configuration(bases["whole"], tmp_path / str(times), dispersive=DispersiveConfig(weight=0),
                               training=Training(steps=2, warmup=0, learning_rate=3e-3, accumulate=times))  # fmt: skip
        runs[times] = Finetuning(
            dataclasses.replace(config, data=dataclasses.replace(config.data, batch=pictures, mirror=0.0))
        )
        gradients[times], reports[times] = gradients_before_each_step(runs[times]), []
        runs[times].run(reports[times].append)
    for one, two in zip(reports[1], reports[2], strict=True):
        assert dataclasses.astuple(two) == pytest.approx(dataclasses.astuple(one), rel=1e-4)
    for one, two in zip(gradients[1], gradients[2], strict=True):
        largest = max(float(gradient.abs().max()) for gradient in one)
        assert largest > 1e-4
        for expected, found in zip(one, two, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-3 * largest, rtol=0)
    weights = trained(runs[2])
    for name, expected in trained(runs[1]).items():
        # the optimizer moves every weight by about the learning rate, those with hardly a gradient by rounding errors
        assert float((weights[name] - expected).abs().mean()) < 0.02 * 2 * 3e-3, name


def test_a_gradient_longer_than_clip_is_cut_to_it(bases, tmp_path):  # noqa: F811
    """The optimizer gets the same direction, and the report how long the gradient was."""
    found = {}
    for clip in (0.0, 1e-3):
        training = Training(steps=1, warmup=0, learning_rate=3e-3, clip=clip)
        run = Finetuning(configuration(bases["whole"], tmp_path / str(clip), training=training))
        gradients, reports = gradients_before_each_step(run), []
        run.run(reports.append)
        found[clip] = torch.cat([gradient.flatten() for gradient in gradients[0]]).double(), reports[0].gradient
    (whole, length), (cut, reported) = found.values()
    assert float(whole.norm()) == pytest.approx(length, rel=1e-5)
    assert length > 0.01
    assert reported == pytest.approx(length, rel=1e-5)
    assert float(cut.norm()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(cut, whole * (1e-3 / length), atol=1e-7, rtol=1e-3)


def test_a_folded_base_trains_its_constants_and_exports_them_exactly(bases, tmp_path):  # noqa: F811
    config = configuration(bases["folded"], tmp_path, lora=LoraShape(rank=2, alpha=2.0, constants=True),
                           training=Training(steps=2, warmup=0, learning_rate=1e-2))  # fmt: skip
    run = Finetuning(config)
    modules, _ = read_lora(run.run())
    with TensorFile(bases["folded"]) as file:
        base = {k.removeprefix("transformer."): file[k] for k in file if k.startswith("transformer.")}
        silu_vec = file["conditioning.silu_vec"]
    changed = {m for m, lora in modules.items() if lora.diff_b is not None}
    assert changed == {"double_blocks.0.img_mod.lin", "double_blocks.0.txt_mod.lin", "single_blocks.0.modulation.lin",
                       "single_blocks.1.modulation.lin"}  # fmt: skip
    merged = flux_to_diffusers(dict(Merged(base, modules, silu_vec=silu_vec)))
    constant = run.base.transformer.transformer_blocks[0].norm1.linear.constant
    torch.testing.assert_close(
        merged["transformer_blocks.0.norm1.linear.constant"], constant.detach(), atol=1e-6, rtol=0
    )


def test_a_loss_that_is_no_number_stops_and_names_the_batch(bases, tmp_path):  # noqa: F811
    run = Finetuning(configuration(bases["whole"], tmp_path))
    run.run(until=1)
    with torch.no_grad():
        run.base.autoencoder.encoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 2: the loss \(depth nan, .*\) is nan in batch 1 \(procedural/\d"):
        run.run()
    assert [path.name for path in run_state.checkpoints(run.config.folder)] == ["step-00000001.safetensors"]


@contextlib.contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """Inside, the system ends every write at `size` bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# TensorBoard writes in a thread of its own, which ends there with a traceback
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_survived(bases, tmp_path, caplog):  # noqa: F811
    def config(out: str, drawn: int) -> FinetuneConfig:
        return configuration(bases["whole"], tmp_path / out, watch=WatchConfig(), cache=CacheConfig(str(tmp_path / f"cache_{out}")),
                             validation=ValidationConfig(every=2, pictures=1, drawn=drawn))  # fmt: skip

    straight = Finetuning(config("a", 0))
    straight.run()
    run = Finetuning(config("b", 1))
    run.run(until=1)
    before = {path: path.read_bytes() for path in run.config.folder.glob("*.safetensors")}
    with disk_with_room_for(900), pytest.raises(OSError, match=r"run\.safetensors.*free some room"):
        run.run(until=3)  # only the LoRA that was asked for at the end is missed loudly
    assert run.step == 3
    for lost in ("tensorboard is left out", "no checkpoint was written", "the best LoRA was not written", "step-00000002.png' was not written"):
        assert lost in caplog.text
    assert {path: path.read_bytes() for path in run.config.folder.glob("*.safetensors")} == before
    run.run()  # the same object goes on with room again; so does a new one, from the last checkpoint
    expected = trained(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(run).items())
    assert run_state.checkpoints(run.config.folder)[-1].name == "step-00000004.safetensors"


@pytest.mark.parametrize("objective", [Objective(start="noise", time="random", joint=False, quantization="uniform", steps=4),
                                       Objective(start="noise", joint=False), Objective(quantization="inverse", joint=False)])  # fmt: skip
def test_the_other_variants_train(bases, tmp_path, objective):  # noqa: F811
    config = configuration(
        bases["whole"], tmp_path, objective=objective, dispersive=DispersiveConfig(weight=0)
    )
    reports = []
    Finetuning(config).run(reports.append, until=1)
    assert reports[0].normal == reports[0].dispersive == 0
    assert reports[0].depth > 0


def test_a_base_in_eight_bits_folded_on_loading_trains_nearly_like_the_whole_one(bases, tmp_path):  # noqa: F811
    curves = {}
    for dtype, fold_it in (("fp32", False), ("fp32", True), ("fp8", True)):
        base = BaseFiles(checkpoint=str(bases["whole"]), dtype=dtype, fold=fold_it)
        lora = LoraShape(rank=4, alpha=2.0)
        reports = []
        config = configuration(bases["whole"], tmp_path / f"{dtype}{fold_it}", lora=lora)
        run = Finetuning(dataclasses.replace(config, base=base))
        run.run(reports.append, until=2)
        curves[dtype, fold_it] = [report.depth + report.normal for report in reports]
        assert all(p.dtype == torch.float32 for _, p in run.trained)
    linear = run.base.transformer.transformer_blocks[0].ff.net[2].base_layer
    assert linear.weight.dtype == torch.float8_e4m3fn
    with TensorFile(bases["whole"]) as file:
        exact = file["transformer.double_blocks.0.img_mlp.2.weight"]
    error = (linear.full_weight(torch.float32) - exact).norm() / exact.norm()
    assert 0 < float(error) < 0.04
    # folding changes nothing before the first step; eight bits a little
    assert curves["fp32", True][0] == pytest.approx(curves["fp32", False][0], rel=1e-5)
    assert curves["fp8", True] == pytest.approx(curves["fp32", True], rel=0.05)
