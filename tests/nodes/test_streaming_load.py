"""Host memory while loading: the resulting model, the largest tensor and one gigabyte, measured on 3 GB of weights.

Everything that is mapped or allocated while loading counts; the pages of libraries that were there before do not.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fe2e_core.tensorfile import write_tensors
from tests.harness.golden import GoldenConfig, dit_shapes, lora_weights, vae_weights

#: 1.6 billion parameters, 3.2 GB in bf16: half the width of the release.
LARGE = GoldenConfig(hidden=1536, depth=9, single=22, llm=128, ctx=256, ctx_heads=2, rank=16, alpha=16.0, lora=True)

LOAD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.harness import inprocess
inprocess.import_comfyui()
import torch
torch.set_num_threads(1)
loading = inprocess.pack_module("nodes.loading")
folder, lora, dtype = sys.argv[2:5]
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))

# Pages of torch's and ComfyUI's own files, which are the disk's cache and differ from machine to machine.
libraries, before = memory("RssFile"), memory("RssAnon")
with torch.inference_mode():
    model = loading.load_parts(f"{folder}/step1x.safetensors", f"{folder}/lora.safetensors" if lora else None, 1.0,
                               f"{folder}/ae.safetensors", f"{folder}/no_info.npz", dtype)
peak = memory("VmHWM") - libraries
state = model.patcher.model.diffusion_model.state_dict()
print(json.dumps({"before": before, "peak": peak, "model": sum(t.numel() * t.element_size() for t in state.values()),
                  "parameters": sum(t.numel() for t in state.values())}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    shapes = dit_shapes(LARGE)
    # One block of noise, cut to every shape: drawing 1.6 billion numbers would take longer than loading them.
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    noise = (torch.randn(2**20) * 0.02).to(torch.bfloat16).repeat(-(-largest // 2**20))

    class Lazy(dict):
        def __getitem__(self, name):
            return noise[: int(np.prod(shapes[name]))].reshape(shapes[name])

        def meta(self, name):
            return torch.empty(shapes[name], dtype=torch.bfloat16, device="meta")

    write_tensors(folder / "step1x.safetensors", Lazy(shapes), {"connector_heads": "2"})
    save_file(lora_weights(LARGE), folder / "lora.safetensors")
    save_file(vae_weights(LARGE), folder / "ae.safetensors")
    np.savez(folder / "no_info.npz", embeds=np.zeros((12, 128), np.float32), masks=np.ones(12, np.int64))
    yield folder, largest * 2
    (folder / "step1x.safetensors").unlink()


@pytest.mark.slow()
@pytest.mark.parametrize(("lora", "dtype"), [("lora", "bf16"), ("", "fp8_e4m3fn")])
def test_peak_memory_is_the_model_the_largest_tensor_and_one_gigabyte(files, request, lora, dtype, record_property):
    folder, largest = files
    assert (folder / "step1x.safetensors").stat().st_size > 3e9
    done = subprocess.run([sys.executable, "-c", LOAD, str(request.config.rootpath), str(folder), lora, dtype],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for key, value in found.items():
        record_property(key, value)
    bound = found["model"] + largest + 2**30
    assert found["peak"] <= bound, (f"peak {found['peak'] / 2**30:.2f} GiB, of which {found['before'] / 2**30:.2f} before loading; "
                                    f"bound {bound / 2**30:.2f} GiB for a model of {found['model'] / 2**30:.2f} GiB")
    print(f"{dtype}: peak {found['peak'] / 2**30:.2f} GiB, bound {bound / 2**30:.2f} GiB, before loading {found['before'] / 2**30:.2f}")
