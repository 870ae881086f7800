"""`python -m train pack`: what it writes, what it refuses, and how little memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.conditioning import constant_conditioning
from fe2e_core.files import sha256
from fe2e_core.folding import fold, modulation_input
from fe2e_core.lora import Merged, match_lora
from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.harness import tiny
from tests.harness.golden import GoldenConfig, dit_shapes, lora_weights, vae_weights
from train import pack


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_fe2e_parts(folder)
    return folder


def options(models: Path, out: Path, *more: str, lora: bool = True) -> list[str]:
    return ["--transformer", str(models / "diffusion_models" / tiny.TRANSFORMER), "--vae", str(models / "vae" / tiny.VAE),
            "--prompt-cache", str(models / "fe2e" / tiny.PROMPT_CACHE), "--out", str(out),
            *(["--lora", str(models / "loras" / tiny.LORA)] if lora else []), *more]


def test_a_packed_file_holds_what_the_parts_give(models, tmp_path, capsys):
    out = tmp_path / "packed.safetensors"
    assert pack.main(options(models, out, "--strength", "0.5")) == 0
    assert "LDRN.safetensors at 0.5" in capsys.readouterr().out
    base = load_file(models / "diffusion_models" / tiny.TRANSFORMER)
    lora = load_file(models / "loras" / tiny.LORA)
    merged = Merged(base, match_lora(lora, base), 0.5)
    conditioning = constant_conditioning(base, *read_prompt_cache(models / "fe2e" / tiny.PROMPT_CACHE))
    silu_vec = modulation_input(merged, conditioning, torch.float32)
    wanted = {k: v for k, v in fold(merged, silu_vec).items() if not k.startswith("connector.")}
    with TensorFile(out, "checkpoint") as file:
        found = read_checkpoint(file)
        assert set(found.transformer) == set(wanted)
        for name, tensor in wanted.items():
            assert torch.equal(found.transformer[name], tensor), name
        assert torch.equal(found.silu_vec, silu_vec)
        assert torch.equal(found.conditioning.context, conditioning.context)
        for name, tensor in load_file(models / "vae" / tiny.VAE).items():
            assert torch.equal(found.vae[name], tensor), name
    assert found.info.name == "packed"
    assert found.info.base_sha256 == sha256(models / "diffusion_models" / tiny.TRANSFORMER)
    assert found.info.lora_sha256 == sha256(models / "loras" / tiny.LORA)
    assert found.info.license == ""  # these are not the released files


def test_a_further_lora_on_a_packed_file_is_noted(models, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert pack.main(options(models, first)) == 0
    assert pack.main(["--checkpoint", str(first), "--lora", str(models / "loras" / tiny.LORA), "--strength", "-1",
                      "--out", str(second), "--dtype", "fp8_scaled"]) == 0
    with TensorFile(second, "checkpoint") as file:
        info = read_checkpoint(file).info
    assert info.lora == "LDRN.safetensors at 1 + LDRN.safetensors at -1"
    assert info.lora_sha256.count(" + ") == 1


def test_refusals_say_what_is_wrong_and_write_nothing(models, tmp_path, capsys):
    out = tmp_path / "out.safetensors"

    def said(arguments: list[str]) -> str:
        assert pack.main(arguments) == 1
        return capsys.readouterr().out

    assert "or --checkpoint alone" in said(["--out", str(out), "--transformer", "x"])
    assert "there is no file" in said(["--checkpoint", str(tmp_path / "nowhere"), "--out", str(out)])
    v11 = {k: v for k, v in load_file(models / "diffusion_models" / tiny.TRANSFORMER).items() if k != "connector.scale_factor"}
    save_file(v11, tmp_path / "v11.safetensors")
    assert "Step1X-Edit v1.1" in said([*options(models, out), "--transformer", str(tmp_path / "v11.safetensors")])
    assert "autoencoder" in said([*options(models, out), "--vae", str(models / "loras" / tiny.LORA)])
    assert not out.exists()
    out.write_bytes(b"mine")
    assert "--overwrite" in said(options(models, out))
    assert out.read_bytes() == b"mine"
    assert {p.name for p in tmp_path.iterdir()} == {"out.safetensors", "v11.safetensors"}


#: 0.6 billion parameters: 1.2 GB in, 0.75 GB out.
LARGE = GoldenConfig(hidden=1536, depth=3, single=7, llm=128, ctx=256, ctx_heads=2, rank=16, alpha=16.0, lora=True)
MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from train.pack import STORAGES, Parts, pack
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))

folder = Path(sys.argv[2])
# VmHWM begins anew with this program, where ru_maxrss begins at its parent's peak; pages of torch's own files are
# the disk's cache and differ from machine to machine.
libraries, before = memory("RssFile"), memory("RssAnon")
parts = Parts(folder / "step1x.safetensors", folder / "ae.safetensors", folder / "no_info.npz", None, folder / "lora.safetensors")
pack(parts, folder / "out.safetensors", STORAGES[sys.argv[3]], digests=False)
print(json.dumps([before, memory("VmHWM") - libraries]))
"""


@pytest.mark.slow()
def test_packing_needs_the_memory_of_a_few_layers(tmp_path, request):
    shapes = dit_shapes(LARGE)
    noise = (torch.randn(2**20) * 0.02).to(torch.bfloat16).repeat(20)

    class Lazy(dict):
        def __getitem__(self, name):
            return noise[: int(np.prod(shapes[name]))].reshape(shapes[name])

        def meta(self, name):
            return torch.empty(shapes[name], dtype=torch.bfloat16, device="meta")

    write_tensors(tmp_path / "step1x.safetensors", Lazy(shapes), {"connector_heads": "2"})
    save_file(lora_weights(LARGE), tmp_path / "lora.safetensors")
    save_file(vae_weights(LARGE), tmp_path / "ae.safetensors")
    np.savez(tmp_path / "no_info.npz", embeds=np.zeros((12, 128), np.float32), masks=np.ones(12, np.int64))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(request.config.rootpath), str(tmp_path), "fp8_scaled"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"packing added {(peak - before) / 2**20:.0f} MiB")
    largest = 2 * max(int(np.prod(shape)) for shape in shapes.values())
    lora = (tmp_path / "lora.safetensors").stat().st_size
    assert peak - before < lora + 4 * largest + 100 * 2**20
    (tmp_path / "step1x.safetensors").unlink()
