"""The FE2E checkpoint: round trip, and everything that can be wrong with a file, said in words."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from fe2e_core.assembly import Assembled, Storage
from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.files import Unfinished
from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.harness.golden import GoldenConfig, dit_weights, vae_weights

SMALL = GoldenConfig(hidden=128, depth=1, single=1, ctx=64, ctx_heads=1, llm=32)
CONDITIONING = Conditioning(torch.randn(1, 5, 64), torch.randn(1, 768))
INFO = CheckpointInfo("small", 96, 128, base="base.safetensors", base_sha256="0" * 64, lora="l at 1", license="MIT")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole, folded checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "fe2e.safetensors"
    silu_vec = torch.randn(1, 128)
    write_checkpoint(path, INFO, Assembled(dit_weights(SMALL), silu_vec, Storage()), vae_weights(SMALL), CONDITIONING, silu_vec)
    return path


def read(path):
    with TensorFile(path, "checkpoint") as file:
        return read_checkpoint(file)


def changed(saved, path, metadata=None, **tensors):
    """The saved file with some tensors replaced, or left out where None."""
    found = {k: v for k, v in {**load_file(saved), **tensors}.items() if v is not None}
    with TensorFile(saved, "checkpoint") as file:
        notes = {**file.metadata, **(metadata or {})}
    save_file({k: v.contiguous() for k, v in found.items()}, path, {k: v for k, v in notes.items() if v is not None})
    return path


def test_round_trip(saved):
    with TensorFile(saved, "checkpoint") as file:
        found = read_checkpoint(file)
        assert found.info == INFO
        assert torch.equal(found.conditioning.context, CONDITIONING.context)
        assert found.transformer["double_blocks.0.img_mod.lin.constant"].dtype == torch.float32
        assert found.transformer["img_in.weight"].dtype == torch.bfloat16
        assert torch.equal(found.transformer["img_in.weight"], dit_weights(SMALL)["img_in.weight"])
        assert not any(name.startswith("connector.") for name in found.transformer)
    assert os.stat(saved).st_mode & 0o044


def test_an_older_file_with_fewer_notes_is_read(saved, tmp_path):
    path = changed(saved, tmp_path / "old.safetensors",
                   dict.fromkeys(("base_sha256", "lora_sha256", "vae_sha256", "vae", "license", "notice")))
    assert read(path).info.base_sha256 == ""


QKV = "transformer.double_blocks.0.img_attn.qkv.weight"


@pytest.mark.parametrize(("metadata", "tensors", "message"), [
    ({"format": "other"}, {}, "no FE2E checkpoint"),
    ({"format_version": "2"}, {}, r"format version 2, this pack reads up to 1; update the pack"),
    ({"format_version": None}, {}, "format version unknown"),
    ({"width": "wide"}, {}, r"metadata 'width' is 'wide'; expected pixels"),
    ({}, {QKV: None}, "no FLUX-shaped transformer"),
    ({}, {"transformer.single_blocks.0.linear2.bias": None}, r"missing, first \['single_blocks.0.linear2.bias'\]"),
    ({}, {"transformer.final_layer.adaLN_modulation.1.constant": None}, "final_layer.adaLN_modulation.1.constant"),
    ({}, {QKV: torch.zeros(5, 128)}, r"double_blocks.0.img_attn.qkv.weight': found \(5, 128\), expected \(384, 128\)"),
    ({}, {"vae.decoder.conv_in.weight": None}, "no autoencoder"),
    ({}, {"vae.encoder.mid.norm": torch.zeros(1), "vae.encoder.norm_out.weight": None}, "encoder.norm_out.weight"),
    ({}, {"conditioning.context": None}, "conditioning.context"),
    ({}, {"conditioning.silu_vec": None}, "silu_vec"),
    ({}, {"conditioning.context": torch.zeros(1, 5, 63)}, r"shape \(1, 5, 63\), this transformer takes \(1, 'tokens', 64\)"),
    ({}, {"conditioning.silu_vec": torch.zeros(1, 7)}, r"silu_vec' has shape \(1, 7\)"),
    ({}, {"transformer.single_blocks.0.linear1.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "cannot be read"),
])
def test_what_is_wrong_with_a_file_is_said(saved, tmp_path, metadata, tensors, message):
    path = changed(saved, tmp_path / "wrong.safetensors", metadata, **tensors)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "checkpoint" in str(caught.value)


@pytest.mark.parametrize("content", ["empty", "truncated", "short header", "text", "pickle", "lying header", "grown"])
def test_a_file_that_is_not_whole_is_refused(saved, tmp_path, content):
    whole, path = saved.read_bytes(), tmp_path / "broken.safetensors"
    lie = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "short header": whole[:20], "text": b"<html>404</html>" * 9,
                      "pickle": b"PK\x03\x04" + bytes(200), "lying header": struct.pack("<Q", len(lie)) + lie, "grown": whole + b"x"}[content])
    with pytest.raises(ValueError, match="is not a whole safetensors file .*download it again") as caught:
        read(path)
    assert "broken.safetensors" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TensorFile(tmp_path / "nowhere.safetensors", "checkpoint")


def test_nothing_incomplete_is_written(tmp_path):
    weights = dit_weights(SMALL)
    del weights["img_in.bias"]
    with pytest.raises(ValueError, match=r"img_in\.bias"):
        write_checkpoint(tmp_path / "x.safetensors", INFO, Assembled(weights, None, Storage()), vae_weights(SMALL), CONDITIONING, None)
    folded = Assembled(dit_weights(SMALL), torch.ones(1, 128), Storage())
    with pytest.raises(ValueError, match="silu"):
        write_checkpoint(tmp_path / "x.safetensors", INFO, folded, vae_weights(SMALL), CONDITIONING, None)
    assert list(tmp_path.iterdir()) == []


def test_stopping_a_save_leaves_what_was_there(saved, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, load_file(saved), {}, stop)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_noticed_before_writing(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("fe2e_core.tensorfile.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="free some room"):
        write_tensors(tmp_path / "x.safetensors", load_file(saved), {})
    assert list(tmp_path.iterdir()) == []


def test_without_nameless_files_a_temporary_name_is_used_and_removed(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with Unfinished(tmp_path / "x") as file:
        file.write(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    with pytest.raises(RuntimeError), Unfinished(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


#: Writes in steps of 4 ms, so that a kill some time in the first 300 ms falls into the middle.
SAVE = """
import sys, time
sys.path.insert(0, sys.argv[2])
import torch
from fe2e_core.tensorfile import write_tensors
tensors = {f"t{i}": torch.full((1 << 18,), float(i)) for i in range(60)}
print("ready", flush=True)
write_tensors(sys.argv[1], tensors, {"format": "test"}, lambda done, total: time.sleep(0.004))
print("done", flush=True)
time.sleep(60)
"""


def test_killing_a_save_leaves_nothing_or_the_whole_file(tmp_path, request):
    delays, outcomes = (0.0, 0.02, 0.07, 0.13, 0.2, None), []
    processes = [subprocess.Popen([sys.executable, "-c", SAVE, str(tmp_path / f"{i}" / "x.safetensors"), str(request.config.rootpath)],
                                  stdout=subprocess.PIPE, text=True) for i in range(len(delays)) if not (tmp_path / f"{i}").mkdir()]
    for i, (delay, process) in enumerate(zip(delays, processes, strict=True)):
        assert process.stdout.readline() == "ready\n"
        if delay is None:
            assert process.stdout.readline() == "done\n"
        else:
            time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = [p.name for p in (tmp_path / f"{i}").iterdir()]
        outcomes.append(left)
        if left == ["x.safetensors"]:
            assert load_file(tmp_path / f"{i}" / "x.safetensors")["t59"][-1] == 59
        elif sys.platform == "linux":
            assert left == []
        else:
            assert all(name.endswith(".part") for name in left)
    assert outcomes[-1] == ["x.safetensors"]
