"""ComfyUI's start options are obeyed, and none of them makes the raw geometry less than float32.

`--lowvram` and `--novram` cannot go with `--cpu`; what they do is exercised by partial loads in tests/nodes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.harness import tiny
from tests.harness.pictures import write_example
from tools.server import ComfyServer

PROMPT = {
    "image": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "model": {"class_type": "FE2ELoadModel", "inputs": {
        "source": "released parts", "source.transformer": tiny.TRANSFORMER, "source.lora": tiny.LORA,
        "source.lora_strength": 1.0, "source.vae_name": tiny.VAE, "source.prompt_cache": tiny.PROMPT_CACHE,
        "weight_dtype": "default", "fold": True}},
    "estimate": {"class_type": "FE2EEstimate", "inputs": {
        "fe2e_model": ["model", 0], "image": ["image", 0], "size": "longest side", "size.longest_side": 128,
        "near_white": True, "chunk": 0}},
    "save": {"class_type": "FE2ESaveNPZ", "inputs": {
        "geometry": ["estimate", 0], "filename_prefix": "flags/geometry", "include_image": False, "compress": False}},
}


def geometry(folder: Path, models: Path, *flags: str) -> tuple[dict[str, np.ndarray], str]:
    """Log-depth and normals of a server started with these options, and the server's log."""
    with ComfyServer(folder, models=models, arguments=flags) as server:
        write_example(server.input)
        [path] = server.run(PROMPT).files("save", "files")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in ("log_depth", "normal")}, server.log


@pytest.fixture(scope="module")
def plain(tmp_path_factory, models_tree):
    return geometry(tmp_path_factory.mktemp("plain"), models_tree, "--fp32-unet")[0]


@pytest.mark.parametrize("flags, tolerance, logged", [
    # Another attention kernel rounds otherwise; float32 throughout.
    (("--fp32-unet", "--use-split-cross-attention"), 1e-4, "split optimization"),
    # The picture itself reaches us in half precision; the results must still be float32 and close.
    (("--fp32-unet", "--fp16-intermediates"), 2e-2, ""),
    # Weights in bfloat16 and fp8: close in the sense of those formats, and never NaN.
    (("--bf16-unet",), 0.15, "model weight dtype torch.bfloat16"),
    # We quantise with a scale, which ComfyUI logs as mixed precision: the size tells (bfloat16 takes 11.4 MB).
    (("--fp8_e4m3fn-unet",), 1.0, r"loaded completely;.* 7\.\d+ MB loaded"),
])
def test_option_is_obeyed_and_the_result_stays_float32(tmp_path, models_tree, plain, flags, tolerance, logged):
    result, log = geometry(tmp_path, models_tree, *flags)
    for key, value in result.items():
        assert value.dtype == np.float32 and np.isfinite(value).all()
        assert np.abs(value - plain[key]).mean() < tolerance, key
        assert len(np.unique(value)) > 5000, f"{key} was rounded on its way out"
    assert re.search(logged, log, re.IGNORECASE)
