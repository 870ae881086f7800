"""Saving one file, loading it back, later LoRAs on it, and core nodes on the parts."""

from __future__ import annotations

import os

import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness import tiny
from tests.harness.inprocess import pack_module, run_node


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.write_fe2e_parts(root)
    # In float32, or merging a LoRA would round to the file's bfloat16 and hide what is compared here.
    path = root / "diffusion_models" / tiny.TRANSFORMER
    save_file({k: v.float() for k, v in load_file(path).items()}, path)
    pack_module("nodes.folders").register()
    for folder in ("diffusion_models", "loras", "vae", "fe2e"):
        folder_paths.add_model_folder_path(folder, str(root / folder), is_default=True)
    return root


def parts(models, lora: bool = True, fold: bool = True, dtype: str = "fp32"):
    return pack_module("nodes.loading").load_parts(
        str(models / "diffusion_models" / tiny.TRANSFORMER), str(models / "loras" / tiny.LORA) if lora else None, 1.0,
        str(models / "vae" / tiny.VAE), str(models / "fe2e" / tiny.PROMPT_CACHE), dtype, fold)


def packed(models, name: str, lora: str | None = None, strength: float = 1.0, dtype: str = "fp32"):
    return pack_module("nodes.loading").load_checkpoint(str(models / "fe2e" / name), lora, strength, dtype)


def save(model, filename: str) -> str:
    return run_node(pack_module("nodes.assembly").FE2ESaveCheckpoint, fe2e_model=model, filename=filename)[0]


def latents(model):
    # One picture: the constants are computed for one, and a batch goes through another matrix kernel, which rounds otherwise.
    with torch.inference_mode():
        return pack_module("nodes.backend").transform(model, torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0)))


def difference(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(latents(a), latents(b), strict=True))


def test_folded_equals_unfolded_to_the_last_bit(models):
    folded, unfolded = parts(models), parts(models, fold=False)
    assert folded.folded and not unfolded.folded
    assert difference(folded, unfolded) == 0


def test_a_saved_file_loads_back_identical(models):
    model = parts(models)
    name = save(model, "round trip")
    again = packed(models, name)
    assert difference(model, again) == 0
    a, b = model.patcher.model_state_dict(), again.patcher.model_state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    va, vb = model.vae.get_sd(), again.vae.get_sd()
    assert va.keys() == vb.keys() and all(torch.equal(va[k], vb[k]) for k in va)
    assert again.info.lora == model.info.lora and again.info.base == tiny.TRANSFORMER


def test_a_name_in_use_is_never_overwritten(models):
    model = parts(models)
    first, second = save(model, "twice"), save(model, "twice.safetensors")
    assert (first, second) == ("twice.safetensors", "twice_02.safetensors")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a\\b", "x" * 300])
def test_names_that_leave_the_folder_are_refused(models, name):
    with pytest.raises(ValueError, match="filename: found"):
        save(parts(models), name)


@pytest.mark.parametrize("fold", [True, False])
def test_a_later_lora_on_a_saved_file_equals_the_lora_on_the_parts(models, fold):
    name = save(parts(models, lora=False, fold=fold), f"later-{fold}")
    later = packed(models, name, str(models / "loras" / tiny.LORA))
    # A folded layer adds the change to its constant, the parts add it to the weight: equal up to float32 rounding.
    assert difference(later, parts(models)) < 2e-5
    assert difference(later, packed(models, name)) > 1e-2


def test_an_interrupted_save_leaves_nothing(models):
    import comfy.model_management as mm

    model = parts(models)
    before = sorted(os.listdir(models / "fe2e"))
    mm.interrupt_current_processing(True)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            save(model, "interrupted")
    finally:
        mm.interrupt_current_processing(False)
    assert sorted(os.listdir(models / "fe2e")) == before


def test_core_lora_loader_on_the_parts_equals_ours(models):
    """An unfolded transformer handed to ComfyUI's own LoRA loading takes all of the LoRA."""
    whole = parts(models, lora=False, fold=False)
    model, _ = run_node(pack_module("nodes.assembly").FE2ETakeApart, fe2e_model=whole)
    patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(models / "loras" / tiny.LORA), 1.0, 0.0)
    joined = run_node(pack_module("nodes.assembly").FE2EPutTogether, fe2e_model=whole, model=patched, vae=None)[0]
    assert difference(joined, parts(models)) < 2e-5
    name = save(joined, "with-core-lora")
    assert difference(packed(models, name), joined) == 0


def test_a_folded_transformer_says_what_core_loras_cannot_reach(models, caplog):
    run_node(pack_module("nodes.assembly").FE2ETakeApart, fe2e_model=parts(models))
    assert "core LoRA nodes cannot reach its 8 modulation layers" in caplog.text


def test_another_models_transformer_is_refused(models):
    whole, other = parts(models), parts(models, fold=False)
    with pytest.raises(ValueError, match="model: its layers differ"):
        run_node(pack_module("nodes.assembly").FE2EPutTogether, fe2e_model=whole, model=other.patcher, vae=None)


def test_attention_patches_of_core_nodes_apply(models):
    whole = parts(models)
    model, _ = run_node(pack_module("nodes.assembly").FE2ETakeApart, fe2e_model=whole)
    seen = []
    model.set_model_attn1_output_patch(lambda attn, options: seen.append(options["block_type"]) or attn)
    joined = run_node(pack_module("nodes.assembly").FE2EPutTogether, fe2e_model=whole, model=model, vae=None)[0]
    assert difference(joined, whole) == 0
    assert "double" in seen


def test_torch_compile_of_core_nodes_is_run(models):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    whole = parts(models)
    model, _ = run_node(pack_module("nodes.assembly").FE2ETakeApart, fe2e_model=whole)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    set_torch_compile_wrapper(model=model, backend=backend)
    joined = run_node(pack_module("nodes.assembly").FE2EPutTogether, fe2e_model=whole, model=model, vae=None)[0]
    assert difference(joined, whole) < 1e-5
    assert graphs
