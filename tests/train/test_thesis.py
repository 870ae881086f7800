"""The paper's thesis in miniature: edits, twins that are alike, scores, and the whole command on a few pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fe2e_core.metrics import abs_rel
from fe2e_core.quantization import SCHEMES
from train.__main__ import main
from train.backend import build_transformer, velocity_of
from train.config import TransformerShape, load_config
from train.flow import draw_start, run_halves
from train.scenes import HELD_OUT
from train.thesis.claims import CLAIMS
from train.thesis.command import only_run
from train.thesis.document import document_text, unfinished
from train.thesis.edits import EDITS, FEATURES, blank, draw_pair
from train.thesis.features import feature_map, probe, similarity, token_labels
from train.thesis.loop import Schedule, train, weights_file
from train.thesis.network import BASES, NOISE, Twin, answer, pretraining_loss
from train.thesis.pictures import EXACT, LABELS, label_of
from train.thesis.rates import all_at, at_the_other_rate, best_rate
from train.thesis.results import PARTS, Results, guess_key, read_results
from train.thesis.rows import PHASES, rows
from train.thesis.scoring import aligned_depth, depth_scores, ranged_depth
from train.thesis.settings import Pictures, ThesisConfig
from train.thesis.sharing import CAN_SHARE, claimed
from train.thesis.worlds import DOMAINS, FARTHEST, NEAREST, draw_scene

ROOT = Path(__file__).resolve().parents[2]
SHAPE = TransformerShape(128, 1, 2, context_tokens=1, context_width=16, pooled_width=8)


def test_scenes_reach_from_a_tenth_of_a_metre_to_eighty():
    depths = []
    for i in range(12):
        scene = draw_scene((5, i), "outdoor", 32, 48)[3]
        valid = scene.depth[scene.mask]
        assert float(valid.min()) >= NEAREST and float(valid.max()) <= FARTHEST
        depths.append(valid)
    near, far = min(float(d.min()) for d in depths), max(float(d.max()) for d in depths)
    assert near < 0.3 and far > 60


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_what_it_says_and_can_be_drawn_again(edit):
    pair = draw_pair((6, 1), edit, "indoor", 32, 48)
    again = draw_pair((6, 1), edit, "indoor", 32, 48)
    assert torch.equal(pair.source, again.source) and torch.equal(pair.target, again.target)
    assert torch.equal(pair.instruction, again.instruction)
    difference = (pair.source - pair.target).abs().amax(-1)
    assert float(difference.mean()) > 0.001
    assert int(pair.instruction[1:6].argmax()) == EDITS.index(edit) and float(pair.instruction[0]) == 0
    if edit in ("recolour", "move", "remove"):  # one thing: most of the picture stays as it was
        assert float((difference < 0.02).float().mean()) > 0.3
        u, v = pair.instruction[6:8].tolist()
        row, column = np.nonzero(difference.numpy() > 0.05)
        inside = (abs(column / 48 * 2 - 1 - u) < 0.6) & (abs(row / 32 * 2 - 1 - v) < 0.9)
        assert inside.any(), "the instruction points elsewhere"
    assert float(pair.caption[17:22].sum()) == 1
    assert torch.allclose(pair.caption[10:13], pair.target.mean((0, 1)))


def test_an_unknown_edit_is_refused():
    with pytest.raises(ValueError, match="expected one of relight"):
        draw_pair((1,), "blur", "indoor", 32, 48)


def test_twins_begin_alike_and_as_the_folded_transformer_does():
    one, two = Twin(SHAPE, 3), Twin(SHAPE, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = Twin(SHAPE, 4).state_dict()["transformer.x_embedder.weight"]
    assert not torch.equal(one.state_dict()["transformer.x_embedder.weight"], other)
    torch.manual_seed(3)
    folded = build_transformer(SHAPE)
    for network in (folded, one.transformer):  # what is zero at the start would hide any difference
        torch.nn.init.eye_(network.proj_out.weight)
    left, image = torch.randn(2, 2, 16, 4, 4)
    conditioning = one.conditioning()
    time = torch.tensor([1.0, 0.3])
    a = run_halves(velocity_of(one.transformer), left, image, time, conditioning)
    b = run_halves(velocity_of(folded), left, image, time, conditioning)
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    mine = one.velocity(left, image, blank().expand(2, -1), time)
    torch.testing.assert_close(mine, a[0])


def test_pretraining_teaches_the_way_from_the_answer_to_the_noise():
    twin = Twin(SHAPE, 0)
    source, target = torch.randn(2, 3, 16, 4, 4)
    seeds = [(9, i) for i in range(3)]
    start, time = draw_start(NOISE, target, seeds)
    assert len(set(time.tolist())) == 3
    features = torch.zeros(3, FEATURES)
    # a fresh network says zero, so the loss is the mean square of what it should have said
    expected = float((start - target).square().mean())
    assert float(pretraining_loss(twin, source, target, features, seeds)) == pytest.approx(expected, rel=1e-5)
    assert float(pretraining_loss(twin, None, target, features, seeds)) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        noise, _ = draw_start(NOISE, target, [(4, i) for i in range(3)])
        assert torch.equal(answer(twin, source, target, features, 3, 4), noise)
        torch.nn.init.eye_(twin.transformer.proj_out.weight)
        with_source = twin.velocity(target, source, features, time)
        assert not torch.equal(with_source, twin.velocity(target, source.flip(0), features, time))
        twin.transformer.norm_out.linear.weight.normal_()  # now the time matters
        assert not torch.equal(with_source, twin.velocity(target, source, features, time))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    schedule = Schedule(steps=6, learning_rate=1e-2, warmup=2, weight_decay=0.01, save_every=2)
    target = torch.randn(2, 16, 4, 4)

    def run(folder: Path, stops: int) -> tuple[list[float] | None, Twin]:
        twin, asked = Twin(SHAPE, 1), iter(range(100))

        def loss_of(step: int) -> torch.Tensor:
            return pretraining_loss(twin, None, target, torch.zeros(2, FEATURES), [(step, 0), (step, 1)])

        return train(twin, loss_of, schedule, folder, lambda: next(asked) != stops), twin

    whole, twin = run(tmp_path / "whole", 99)
    assert run(tmp_path / "parts", 2)[0] is None
    assert not (tmp_path / "parts" / "done").exists()
    # a kill after the last save: the rows behind it are written again
    (tmp_path / "parts" / "losses.jsonl").open("a").write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    parts, other = run(tmp_path / "parts", 99)
    assert parts == whole and len(parts) == 6
    for a, b in zip(twin.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    saved = weights_file(tmp_path / "parts").stat().st_mtime_ns
    assert run(tmp_path / "parts", 99)[0] == whole
    assert weights_file(tmp_path / "parts").stat().st_mtime_ns == saved


def test_perfect_labels_of_every_scheme_give_the_true_depth():
    torch.manual_seed(0)
    depth = torch.exp(torch.empty(24, 32).uniform_(np.log(0.2), np.log(60)))
    depth = depth.sort().values
    valid = torch.rand(24, 32) > 0.1
    for scheme in LABELS:
        label = label_of(depth, valid, scheme)
        assert bool((label[~valid] == (-1 if scheme == "inverse" else 1)).all())
        counted = valid & (label.abs() < 0.99)  # beyond the percentiles labels are clipped
        errors = [abs_rel(read(label, depth, valid, scheme).float(), depth, counted) for read in (ranged_depth, aligned_depth)]
        # uniform and inverse labels in BF16 are coarse at one end; logarithmic ones nowhere
        bound = {"log": 0.02, "sqrt": 0.05}.get(scheme, 0.5)
        assert max(errors) < bound, scheme
        worse = label.clone()
        worse[:, :16] = worse[:, :16].flip(0, 1)
        assert abs_rel(ranged_depth(worse, depth, valid, scheme), depth, counted) > errors[0]
    rounded, exact = label_of(depth, valid, "uniform"), label_of(depth, valid, EXACT)
    assert not torch.equal(rounded, exact) and torch.equal(rounded, exact.to(torch.bfloat16).float())


def test_scores_are_split_by_domain_distance_and_reading():
    depth = torch.tensor([[0.5, 2.0, 8.0, 32.0]]).repeat(2, 4, 1)
    data = {"depth": depth, "valid": torch.ones(2, 4, 4, dtype=torch.uint8)}
    labels = torch.stack([label_of(d, torch.ones(4, 4, dtype=torch.bool), "log") for d in depth])
    labels[1] = 0.8 * labels[1]  # the fit undoes what is linear, the true percentiles do not
    scores = depth_scores(labels, data, "log")
    first, second = (scores[name] for name in DOMAINS)
    assert first["abs_rel"] < 0.01 and first["range_abs_rel"] < 0.01
    assert second["abs_rel"] < 0.01 and second["range_delta1"] < 0.6
    factor = 64**0.1  # labels of +-1 became +-0.8, a tenth of the range
    assert second["near"] == pytest.approx(factor - 1, abs=0.02)
    assert second["far"] == pytest.approx(1 - 1 / factor, abs=0.02)


def test_a_probe_reads_what_is_there_and_nothing_else():
    torch.manual_seed(1)
    label = torch.randn(300, 4)
    counts = torch.rand(300, 4) > 0.2
    noise = torch.randn(300, 4, 12)
    knowing = noise.clone()
    knowing[..., 3] = 5 * label + 2
    arguments = (label[:200], counts[:200])
    rest = (label[200:], counts[200:])
    assert probe(knowing[:200], *arguments, knowing[200:], *rest) > 0.97
    assert abs(probe(noise[:200], *arguments, noise[200:], *rest)) < 0.1
    # where a token lies is no knowledge: a label that depends on the place alone cannot be explained further
    place = torch.randn(4).expand(300, 4) + 0.1 * label
    assert probe(noise[:200], place[:200], counts[:200], noise[200:], place[200:], counts[200:]) < 0.1
    turn = torch.linalg.qr(torch.randn(12, 12)).Q
    assert similarity(noise, 3 * noise @ turn) == pytest.approx(1, abs=1e-4)
    assert similarity(noise, torch.randn(300, 4, 12)) < 0.1


def test_feature_maps_and_token_labels_keep_their_place():
    features = torch.zeros(6, 8)
    features[4, 0:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # token in row 1, column 1: channel 0 of its four places
    shown = feature_map(features, 4, 6)
    assert shown[2:4, 2:4].tolist() == [[1, 2], [3, 4]] and float(shown.sum()) == 10
    label, valid = torch.zeros(1, 32, 48), torch.ones(1, 32, 48)
    label[0, 16:, 16:32] = 0.5
    valid[0, 16:, 16:24] = 0
    valid[0, :16, :9] = 0
    mean, counts = token_labels(label, valid)
    assert mean[0].tolist() == [0, 0, 0, 0, 0.5, 0]
    assert counts[0].tolist() == [False, True, True, True, True, True]


def test_results_are_whole_and_of_one_configuration(tmp_path):
    config = ThesisConfig()
    file = tmp_path / "thesis" / "results.json"
    results = Results(file, config.identity(), "abc", tmp_path / "lock")
    results.add("runs", "id6/0", {"loss": [0.123456789, 1], "scores": {"all": {"abs_rel": 1 / 3}}})
    assert [p.name for p in file.parent.iterdir()] == ["results.json"]
    again = Results(file, config.identity(), "abc", tmp_path / "lock")
    assert again.get("runs", "id6/0") == {"loss": [0.12346, 1], "scores": {"all": {"abs_rel": 0.33333}}}
    with pytest.raises(ValueError, match="another configuration or autoencoder"):
        Results(file, config.identity(), "abd", tmp_path / "lock")
    with pytest.raises(ValueError, match="another configuration"):
        Results(file, ThesisConfig(pictures=Pictures(scenes=99)).identity(), "abc", tmp_path / "lock")
    assert Results(file, ThesisConfig(seeds=(0, 1, 2, 3)).identity(), "abc", tmp_path / "lock").has("runs", "id6/0"), "seeds may be added"
    file.write_text("{}")
    with pytest.raises(ValueError, match="not a results file"):
        read_results(file)


def test_rows_are_those_of_the_paper():
    config = load_config(ROOT / "train" / "configs" / "thesis.toml", ThesisConfig)
    assert len(config.seeds) >= 3
    table = {row.name: row for row in rows(config.finetuning.euler)}
    assert sorted(name for phase in PHASES for name in phase) == sorted(table)
    for number in range(1, 9):  # the objective of each row is that of the recipe for the released size
        recipe = load_recipe_objective(f"table4_id{number}")
        ours = table[f"id{number}"]
        for key in ("start", "time", "joint"):
            assert getattr(ours.objective, key) == recipe.get(key, getattr(ours.objective, key)), (number, key)
        assert ours.labels == recipe["quantization"]
        assert ours.base == ("generator" if number in (1, 7) else "editor")
    with pytest.raises(ValueError, match="expected different ones"):
        ThesisConfig(sweep_seed=1)


def load_recipe_objective(name: str) -> dict[str, object]:
    import tomllib

    return tomllib.loads((ROOT / "train" / "configs" / f"{name}.toml").read_text())["objective"]


SMALL = """
work = "{folder}/work"
documents = "{folder}/docs"
autoencoder = "{root}/models/fe2e-nano.safetensors"
seeds = [0]
[network]
width = 128
double_blocks = 1
single_blocks = 2
context_tokens = 1
context_width = 16
pooled_width = 8
[pictures]
height = 32
width = 32
pairs = 4
scenes = 8
validation = 1
held_out = 2
edits = 5
chunk = 8
[pretraining]
steps = 2
batch = 2
[finetuning]
steps = 4
batch = 2
rates = [1e-3, 1e-2]
euler = 2
"""


def test_the_whole_study_in_pieces(tmp_path, capsys):
    config = tmp_path / "small.toml"
    config.write_text(SMALL.format(folder=tmp_path, root=ROOT))
    results = tmp_path / "docs" / "thesis" / "results.json"
    command = ["thesis", "--config", str(config)]
    assert main([*command, "--dry-run"]) == 0
    assert "13 runs to do: id6/0" in capsys.readouterr().out
    assert not results.exists()
    assert main([*command, "--minutes", "0.00001"]) == 0  # not even one file of pictures
    assert "the same command goes on" in capsys.readouterr().out
    with only_run(tmp_path / "work"):
        assert main(command) == 2
    assert "another run is using" in capsys.readouterr().err
    page = (tmp_path / "docs" / "thesis.md").read_text()
    assert "0 of 13 runs are in the tables" in page and page.count("**not run yet**") == len(CLAIMS)
    assert "](thesis/" not in page, "no link to a file that is not there"
    assert main(command) == 0
    assert "everything is done" in capsys.readouterr().out
    data = read_results(results)
    assert sorted(data["sweep"]) == sorted(f"{base}/{rate}" for base in BASES for rate in (0.001, 0.01))
    assert sorted(data["bases"]) == ["editor/0", "editor/100", "generator/0", "generator/100"]
    assert all(data[part] for part in PARTS) and data["seconds"] > 0
    assert len(data["runs"]) == 13 + len(at_the_other_rate(data, (1e-3, 1e-2)))
    for name, run in data["runs"].items():
        assert len(run["loss"]) == 4 and np.isfinite(run["loss"]).all()
        assert ("abs_rel" in run["scores"]["all"]) != (name == "normals/0")
        assert ("angle" in run["scores"]["all"]) == (name in ("normals/0", "id8/0"))
    # what decodes true labels is better than a guess that never looks
    assert data["floor"]["log"]["all"]["abs_rel"] < data["floor"][guess_key("log")]["all"]["abs_rel"]
    assert len({data["floor"][guess_key(scheme)]["all"]["abs_rel"] for scheme in SCHEMES}) == len(SCHEMES)
    assert data["floor"]["normals"]["all"]["angle"] < data["floor"][guess_key("normals")]["all"]["angle"]
    # fair: the twins start with the same weights, pictures, noise and times, so that their first losses are one number
    first = [data["bases"][f"{kind}/0"]["loss"][0] for kind in ("editor", "generator")]
    assert first[0] == first[1] != data["bases"]["editor/100"]["loss"][0]
    # and labels change what is learned
    assert len({data["runs"][f"{row}/0"]["loss"][0] for row in ("id4", "id5", "id6", "sqrt", "normals")}) == 5

    page = (tmp_path / "docs" / "thesis.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|") and "**undecided**" in line]
    assert len(lines) == len(CLAIMS), "one line for each claim, and one seed decides none"
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert len(pictures) == 5 and all((tmp_path / "docs" / name).stat().st_size > 1000 for name in pictures)

    before = results.read_bytes()
    assert main([*command, "--report-only"]) == 0
    assert results.read_bytes() == before
    whole = load_config(config, ThesisConfig)
    assert unfinished(whole, data) == []
    del data["runs"]["sqrt/0"]
    assert unfinished(whole, data) == ["sqrt/0"] and "missing are seeds of\nsqrt." in document_text(whole, data)
    results.write_text(json.dumps(data))
    assert main(command) == 0  # done again from its finished weights, to the same numbers
    assert read_results(results)["runs"]["sqrt/0"] == json.loads(before)["runs"]["sqrt/0"]

    data = read_results(results)  # a sweep in which the bases part
    own = best_rate(data, "editor")
    rate = {0.001: 0.01, 0.01: 0.001}[own]
    data["sweep"] = {f"{base}/{r}": float((r == own) != (base == "editor")) for base in BASES for r in (0.001, 0.01)}
    for part in ("runs", "features"):
        data[part] = {key: value for key, value in data[part].items() if "@" not in key}
    results.write_text(json.dumps(data))
    wanted = [f"id6@{rate:g}/0", f"id7@{own:g}/0", f"scratch@{own:g}/0", f"id2@{rate:g}/0", f"id1@{own:g}/0"]
    assert unfinished(whole, data) == wanted
    assert main(command) == 0
    data = read_results(results)
    assert unfinished(whole, data) == [] and list(data["runs"])[-5:] == wanted
    assert {f"editor@{rate:g}/0", f"generator@{own:g}/0"} <= set(data["features"])
    ours, at_other = data["runs"]["id6/0"], data["runs"][wanted[0]]
    assert at_other["loss"][0] == ours["loss"][0], "the same weights, pictures and noise"
    assert at_other["loss"][-1] != ours["loss"][-1], "and another rate"
    assert all_at(data, rate)["runs"]["id6/0"] == at_other and all_at(data, own)["runs"]["id6/0"] == ours
    page = (tmp_path / "docs" / "thesis.md").read_text()
    assert "| both at 0.001 | both at 0.01 | each at its own |" in page


@pytest.mark.skipif(not CAN_SHARE, reason="this system has no locks of files")
def test_processes_share_a_study_and_find_the_same(tmp_path, capfd):
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        config = folder / "small.toml"
        config.write_text(SMALL.format(folder=folder, root=ROOT))
        assert main(["thesis", "--config", str(config), "--workers", str(workers)]) == 0
        said = capfd.readouterr().out
        data = read_results(folder / "docs" / "thesis" / "results.json")
        for part in PARTS:
            for key in data[part]:
                assert said.count(f"{part} {key}: done") == 1, "nothing is done twice"
        assert "everything is done" in said and data["seconds"] > 0
        found.append({part: dict(sorted(data[part].items())) for part in PARTS})
    assert found[0] == found[1]


@pytest.mark.skipif(not CAN_SHARE, reason="this system has no locks of files")
def test_what_is_claimed_is_of_one_holder(tmp_path):
    file = tmp_path / "locks" / "it"
    with claimed(file) as mine, claimed(file) as again:
        assert mine and not again
    with pytest.raises(KeyError), claimed(file):
        raise KeyError
    with claimed(file) as mine, claimed(tmp_path / "other") as other:
        assert mine and other
    assert main(["thesis", "--workers", "0"]) == 2


def test_no_scene_of_the_tables_is_trained_on():
    from train.thesis import pictures

    config = Pictures()
    ranges = [range(pictures._FIRST[name], pictures._FIRST[name] + count * (1 if name == "scenes" else 2))
              for name, count in (("scenes", config.scenes), ("validation", config.validation), ("held_out", config.held_out))]  # fmt: skip
    assert ranges[1].start >= HELD_OUT
    for i, a in enumerate(ranges):
        for b in ranges[i + 1 :]:
            assert a.stop <= b.start or b.stop <= a.start
