"""The encoded empty prompt, with random text encoders of a few thousand numbers in the published format."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fe2e_core.tensorfile import TensorFile
from train.__main__ import main
from train.empty_prompt import encode_empty_prompt


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    # begin, end and padding as the published configuration of FLUX.1's CLIP has them: not where its vocabulary does
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                        num_attention_heads=2, bos_token_id=0, eos_token_id=2, pad_token_id=1))  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
                                 feed_forward_proj="gated-gelu"))  # fmt: skip
    return clip.eval(), t5.eval()


def arguments(folder, *more: str) -> list[str]:
    return ["empty-prompt", "--flux", str(folder), "--out", str(folder / "out" / "empty.safetensors"), *more]


@pytest.fixture(scope="module")
def folder(encoders, tmp_path_factory):
    path = tmp_path_factory.mktemp("flux")
    for name, model in zip(("text_encoder", "text_encoder_2"), encoders, strict=True):
        model.save_pretrained(path / name)
    return path


def test_the_file_is_what_the_encoders_say_of_the_padded_empty_prompt(encoders, folder):
    clip, t5 = encoders
    assert main(arguments(folder, "--tokens", "7", "--dry-run")) == 0
    assert not (folder / "out").exists()
    assert main(arguments(folder, "--tokens", "7")) == 0
    # as the pipelines tokenise it: CLIP's 77 tokens filled up with its end, T5's with its padding
    with torch.no_grad():
        pooled = clip(torch.tensor([[58] + [59] * 76])).pooler_output
        context = t5(torch.tensor([[1] + [0] * 6])).last_hidden_state
    with TensorFile(folder / "out" / "empty.safetensors") as file:
        torch.testing.assert_close(file["pooled"], pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(file["context"], context, atol=1e-5, rtol=1e-4)
        assert file["context"].shape == (1, 7, 24)
    assert main(arguments(folder)) == 2, "an existing file is not overwritten"


def test_padding_counts_for_t5_and_not_for_clip(encoders):
    few, many = (encode_empty_prompt(*encoders, tokens) for tokens in (4, 9))
    assert torch.equal(few.pooled, many.pooled)
    assert not torch.allclose(few.context[0, 0], many.context[0, 0], atol=1e-4)


def test_what_is_missing_is_named(folder, tmp_path, capsys):
    assert main(["empty-prompt", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "give --flux, or --clip and --t5" in capsys.readouterr().err
    assert main(arguments(tmp_path)) == 2
    assert "text_encoder' has no config.json" in capsys.readouterr().err
    assert main([*arguments(folder)[:-1], str(tmp_path / "x.npz")]) == 2
    assert ".safetensors" in capsys.readouterr().err
