"""Each row of the paper's Tables 4 and 5 is one file, and rows differ in what the paper says they differ in."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from fe2e_core.conditioning import Conditioning
from fe2e_core.release import FILES
from train.data.procedural import Procedural, ProceduralConfig
from train.dispersive import DispersiveConfig
from train.flow import draw_start, flow_loss, sample
from train.labels import label_frame
from train.recipe import BaseFiles, FinetuneConfig, Objective, Training, load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "train/configs"
#: Row -> (editor, consistent velocity, fixed start, joint, quantisation, dispersive loss), as printed.
ROWS = {
    "table4_id1": (False, False, False, False, "uniform", False),
    "table4_id2": (True, False, False, False, "uniform", False),
    "table4_id3": (True, True, False, False, "uniform", False),
    "table4_id4": (True, True, True, False, "uniform", False),
    "table4_id5": (True, True, True, False, "inverse", False),
    "table4_id6": (True, True, True, False, "log", False),
    "table4_id7": (False, True, True, False, "log", False),
    "table4_id8": (True, True, True, True, "log", False),
    "table5_baseline": (True, True, True, False, "uniform", False),
    "table5_dispersive": (True, True, True, False, "uniform", True),
    "fe2e": (True, True, True, True, "log", True),
}


def described(config: FinetuneConfig) -> tuple:
    objective = config.objective
    return ("step1x" in config.base.transformer, objective.time == "one", objective.start == "zero", objective.joint,
            objective.quantization, config.dispersive.weight > 0)  # fmt: skip


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_what_the_paper_says(name):
    config = load_recipe(str(CONFIGS / f"{name}.toml"))
    assert config.name == name
    assert described(config) == ROWS[name]
    assert (config.lora.rank, config.lora.alpha) == (64, 32.0)
    assert (config.training.epochs, config.training.learning_rate) == (30, 1e-4)
    if described(config)[0]:
        fetched = {f"models/{file.folder}/{file.name}" for file in FILES.values()}
        assert {config.base.transformer, config.base.vae, config.base.prompt_cache} < fetched, "as `train fetch` names them"
    assert [(s.kind, s.weight) for s in config.data.sources] == [("hypersim", 0.9), ("vkitti", 0.1)]
    if config.dispersive.weight:
        assert (config.dispersive.weight, config.dispersive.tau, config.dispersive.block) == (0.5, 1.0, 9)
        assert config.data.batch >= 2


def test_the_configuration_for_24_gb_is_the_whole_recipe_on_a_smaller_base(tmp_path):
    whole, small = (load_recipe(str(CONFIGS / f"{name}.toml")) for name in ("fe2e", "fe2e_24gb"))
    assert described(small) == described(whole)
    assert small.objective == whole.objective
    assert (small.base.dtype, small.base.fold, small.lora.constants) == ("fp8", True, True)
    assert small.data.batch * small.training.accumulate == whole.data.batch
    assert small.dispersive.source == "queue", "one picture at a time has nothing else to be pushed from"
    (tmp_path / "broken.toml").write_text("a = 1\na = 2\n")
    with pytest.raises(ValueError, match=r"broken\.toml: Cannot overwrite"):
        load_recipe(str(tmp_path / "broken.toml"))


def aspects(config: FinetuneConfig) -> dict[str, object]:
    """What a row is trained with, as the network and the loss see it: of one frame and one pair of latents."""
    z, objective = latents(), config.objective
    label = label_frame(Procedural(ProceduralConfig(64, 96, scenes=1)).read(0), objective.quantization).depth
    network = Recorder()
    losses = loss_of(objective, network)
    left = network.tokens[0][:, : network.tokens[0].shape[1] // 2]
    return {
        "base": (config.base.transformer, config.base.prompt_cache, config.base.conditioning),
        "target": label.numpy().tobytes(),
        "start": draw_start(objective, z["depth"], SEEDS)[0].numpy().tobytes(),
        # what stands in the place of the answer: all noise, noise and answer mixed, or nothing
        "input": (left.numpy().tobytes(), network.times[0].numpy().tobytes()),
        "loss": (float(losses[1]) > 0, config.dispersive.weight),
    }


#: In which aspects two rows differ when the paper's columns do. A fixed start is another input as well.
FOLLOWS = ({"base"}, {"input"}, {"start", "input"}, {"loss"}, {"target"}, {"loss"})


def test_any_two_rows_differ_in_what_the_paper_says_and_in_nothing_else():
    recipes = {name: load_recipe(str(CONFIGS / f"{name}.toml")) for name in ROWS}
    seen = {name: aspects(config) for name, config in recipes.items()}
    for a, b in itertools.combinations(ROWS, 2):
        columns = [i for i, (x, y) in enumerate(zip(ROWS[a], ROWS[b], strict=True)) if x != y]
        expected = set().union(*(FOLLOWS[i] for i in columns))
        different = {key for key in seen[a] if seen[a][key] != seen[b][key]}
        assert different == expected, f"{a} and {b}"
        assert (different == set()) == ({a, b} == {"table4_id4", "table5_baseline"})
    rests = {
        dataclasses.replace(config, name="", base=recipes["fe2e"].base, objective=Objective(), dispersive=DispersiveConfig()).identity()
        for config in recipes.values()
    }
    assert len(rests) == 1, "the rows differ in something that the paper does not mention"


def latents() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 16, 4, 6, generator=generator) for name in ("image", "depth", "normal")}


class Recorder:
    """A network that answers with what it is told to, and keeps what it was given."""

    def __init__(self, answer: torch.Tensor | None = None):
        self.answer, self.tokens, self.times = answer, [], []

    def __call__(self, tokens, ids, context, context_ids, timestep, pooled):
        assert torch.equal(ids[0, : ids.shape[1] // 2], ids[0, ids.shape[1] // 2 :])
        self.tokens.append(tokens)
        self.times.append(timestep)
        return torch.zeros_like(tokens) if self.answer is None else self.answer


CONDITIONING = Conditioning(torch.zeros(1, 1, 8), torch.zeros(1, 4))
SEEDS = [(0, 1, 2, 0), (0, 1, 2, 1)]
ALL = torch.ones(2, 1, 4, 6, dtype=torch.bool)


def loss_of(objective: Objective, network: Recorder) -> tuple[torch.Tensor, torch.Tensor]:
    z = latents()
    return flow_loss(network, objective, z["image"], z["depth"], z["normal"], ALL, ALL, CONDITIONING, SEEDS)


def test_inputs_and_targets_follow_the_equations():
    z = latents()
    fixed, consistent = Objective(), Objective(start="noise", joint=False)
    direct = Objective(start="noise", time="random", joint=False, steps=3)
    network = Recorder()
    depth, normal = loss_of(fixed, network)
    tokens = network.tokens[0]
    assert not tokens[:, : tokens.shape[1] // 2].any(), "the left half is zero"
    assert bool((network.times[0] == 1).all())
    torch.testing.assert_close(depth, z["depth"].square().mean())
    torch.testing.assert_close(normal, z["normal"].square().mean())

    noise, _ = draw_start(consistent, z["depth"], SEEDS)
    network = Recorder()
    depth, normal = loss_of(consistent, network)
    torch.testing.assert_close(depth, (noise - z["depth"]).square().mean())
    assert float(normal) == 0
    assert bool((network.times[0] == 1).all())
    assert bool(network.tokens[0][:, :6].any())

    network = Recorder()
    loss_of(direct, network)
    assert 0 < float(network.times[0].min()) < float(network.times[0].max()) < 1


def test_the_perfect_answer_has_no_loss_and_samples_to_the_target():
    from fe2e_core.packing import pack

    z = latents()
    for objective in (
        Objective(),
        Objective(start="noise", joint=False),
        Objective(start="noise", time="random", joint=False, steps=5),
    ):
        start, _ = draw_start(objective, z["depth"], SEEDS)
        perfect = Recorder(torch.cat([pack(start - z["depth"]), pack(z["normal"])], dim=1))
        assert sum(float(part) for part in loss_of(objective, perfect)) < 1e-10
        depth, normal = sample(perfect, objective, z["image"], CONDITIONING, SEEDS)
        torch.testing.assert_close(depth, z["depth"], atol=1e-5, rtol=0)
        assert len(perfect.times) == 1 + objective.steps
        assert (normal is not None) == objective.joint


def test_masked_latents_do_not_count():
    z = latents()
    mask = ALL.clone()
    mask[0] = False
    arguments = (Recorder(), Objective(), z["image"], z["depth"], z["normal"])
    depth, normal = flow_loss(*arguments, mask, ALL & False, CONDITIONING, SEEDS)
    torch.testing.assert_close(depth, z["depth"][1].square().mean())
    assert float(normal) == 0


def test_noise_belongs_to_the_picture_not_to_the_process():
    z = latents()["depth"]
    both, times = draw_start(Objective(start="noise", time="random", joint=False), z, SEEDS)
    second, time = draw_start(Objective(start="noise", time="random", joint=False), z[1:], SEEDS[1:])
    assert torch.equal(both[1:], second)
    assert torch.equal(times[1:], time)


def test_contradictions_are_refused():
    for make, message in (
        (lambda: Objective(time="random"), "every z_t shows the answer"),
        (lambda: Objective(steps=3), "steps is 3"),
        (lambda: Objective(quantization="direct"), "quantization is 'direct'"),
        (lambda: BaseFiles(), "either checkpoint"),
        (lambda: BaseFiles(checkpoint="a", transformer="b"), "either checkpoint"),
        (
            lambda: BaseFiles(transformer="a", vae="b", prompt_cache="c", conditioning="d"),
            "either checkpoint",
        ),
        (lambda: Training(schedule="wild"), "schedule"),
        (lambda: Training(epochs=0), "steps or epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
