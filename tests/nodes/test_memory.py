"""Nothing stays behind: twenty times loaded, used, unloaded and dropped beside another model."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management as mm
import torch
from safetensors.torch import load_file

from tests.harness import tiny
from tests.harness.inprocess import pack_module


def live_bytes() -> int:
    """Bytes of all tensors that are alive in this process, shared storages counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Plain tensors only: what torch.compile leaves behind has no storage to look at.
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_twenty_cycles_leave_nothing_behind(tmp_path):
    tiny.write_fe2e_parts(tmp_path)
    loading, backend = pack_module("nodes.loading"), pack_module("nodes.backend")
    other_vae = load_file(tmp_path / "vae" / tiny.VAE)
    sizes, dropped = [], []
    with torch.inference_mode():
        for _ in range(20):
            model = loading.load_parts(str(tmp_path / "diffusion_models" / tiny.TRANSFORMER), str(tmp_path / "loras" / tiny.LORA), 1.0,
                                       str(tmp_path / "vae" / tiny.VAE), str(tmp_path / "fe2e" / tiny.PROMPT_CACHE), "bf16")
            latent = backend.encode(model, torch.rand(1, 32, 32, 3))
            backend.decode(model, backend.transform(model, latent)[0])
            other = backend.build_vae(other_vae)
            mm.load_models_gpu([other.patcher])
            mm.unload_all_models()
            dropped.append(weakref.ref(model.patcher.model))
            del model, other, latent
            mm.cleanup_models_gc()
            sizes.append(live_bytes())
    assert all(reference() is None for reference in dropped), "a transformer is still alive after it was dropped"
    # The first cycles may fill caches that are kept for good; after them nothing is added.
    assert max(sizes[3:]) - min(sizes[3:]) < 1024, sizes


def test_the_chunk_does_not_depend_on_what_is_loaded_already(tmp_path, monkeypatch):
    """On a GPU, of which only the free memory is asked: the first run of a batch and the second give the same bits."""
    tiny.write_fe2e_parts(tmp_path)
    backend = pack_module("nodes.backend")
    model = pack_module("nodes.loading").load_parts(
        str(tmp_path / "diffusion_models" / tiny.TRANSFORMER), None, 1.0, str(tmp_path / "vae" / tiny.VAE),
        str(tmp_path / "fe2e" / tiny.PROMPT_CACHE), "fp32")  # fmt: skip
    patcher = model.patcher
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    need = max(patcher.memory_required([1, 16, 8, 16]), model.vae.memory_used_decode([1, 16, 8, 8], torch.float32))
    card = patcher.model_size() + int(5.5 * 2 * need)
    monkeypatch.setattr(mm, "get_free_memory", lambda device: card - patcher.loaded_size())
    before = backend.chunk_size(model, 64, 64, 16)
    assert patcher.loaded_size() == 0
    mm.load_models_gpu([patcher])
    assert patcher.loaded_size() > 0
    assert backend.chunk_size(model, 64, 64, 16) == before == 5
