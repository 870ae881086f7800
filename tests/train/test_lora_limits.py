"""What cannot be done with a LoRA is said before it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from fe2e_core.provenance import provenance
from tests.train.test_recipes import CONFIGS, ROWS
from tests.train.tiny_run import bases  # noqa: F401 - `bases` is a fixture
from train.__main__ import main
from train.convert import read_lora
from train.lora import limits
from train.recipe import load_recipe

SAID = "[objective] start = 'noise': the LoRA predicts from noise"


def test_the_rows_of_table_4_that_start_from_noise():
    limited = [name for name in ROWS if limits(load_recipe(str(CONFIGS / f"{name}.toml")).objective)]
    assert limited == ["table4_id1", "table4_id2", "table4_id3"]


def write(folder: Path, base: Path, start: str) -> list[str]:
    text = (
        f'name = "r"\nout = "{folder}"\n[base]\ncheckpoint = "{base}"\ndtype = "fp32"\n[objective]\nstart = "{start}"\njoint = false\n'
        '[dispersive]\nweight = 0.0\n[lora]\nrank = 2\n[training]\nsteps = 1\n[watch]\ntensorboard = false\n'
        '[data]\nworkers = 0\n[[data.source]]\nkind = "procedural"\nheight = 32\nwidth = 48\n'
    )
    (folder / "c.toml").write_text(text)
    return ["lora", "--config", str(folder / "c.toml")]


@pytest.mark.parametrize("start", ["noise", "zero"])
def test_it_is_said_by_a_dry_run_and_when_training_starts(bases, tmp_path, caplog, capsys, start):  # noqa: F811
    command = write(tmp_path, bases["whole"], start)
    assert main([*command, "--dry-run"]) == 0
    assert (SAID in capsys.readouterr().out) == (start == "noise")
    assert main(command) == 0
    assert (SAID in caplog.text) == (start == "noise")
    _, metadata = read_lora(tmp_path / "r" / "r.safetensors")
    if start == "noise":
        with pytest.raises(ValueError, match="trained with start = 'noise'"):
            provenance(metadata, "LoRA")
    else:
        assert provenance(metadata, "LoRA").joint is False
