"""docs/thesis.md and its figures, written from the results; nothing in them is typed by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.thesis import figures, tables
from train.thesis.claims import CLAIMS, VERDICTS, decide
from train.thesis.network import BASES, EDITOR, GENERATOR
from train.thesis.pictures import LABELS, held_out_scene, label_of
from train.thesis.rates import at, at_the_other_rate, best_rate, rates_of
from train.thesis.results import guess_key
from train.thesis.rows import BASE_OF, rows
from train.thesis.settings import ThesisConfig
from train.thesis.study import MAPS, SHOWN
from train.thesis.worlds import DOMAINS

SHEET_ROWS = ("id6", "id7", "id2", "id8", "normals", "id4", "id5")
"""Whose estimates are drawn."""


def unfinished(config: ThesisConfig, data: dict[str, Any]) -> list[str]:
    """The runs that are still to be done, "row/seed"."""
    names = [row.name for row in rows(config.finetuning.euler)]
    names += [at(*run) for run in at_the_other_rate(data, config.finetuning.rates)]
    return [f"{n}/{s}" for n in names for s in config.seeds if f"{n}/{s}" not in data["runs"]]


def write_document(config: ThesisConfig, data: dict[str, Any], shown: Path) -> list[str]:
    """Write the figures, as far as there is something to draw, and thesis.md; the paths written. `shown`: folder of kept
    pictures (`Study.shown`); without them earlier figures stay as they are."""
    folder = Path(config.documents) / "thesis"
    folder.mkdir(parents=True, exist_ok=True)
    improved, direct = folder / "losses.png", folder / "losses_direct.png"
    done = {
        improved: figures.draw_losses(data, _curves(data, ("id6", "id7")), improved, "Training loss, improved (6, 7)"),
        direct: figures.draw_losses(data, _curves(data, ("id2", "id1")), direct, "Training loss, adapted directly (2, 1)"),
    }  # fmt: skip
    if data["maps"] or shown.is_dir():
        truth = _truth(config)
        path = folder / "features.png"
        done[path] = figures.draw_features(data, [truth[SHOWN.index(i)][0] for i in MAPS], path)
        path = folder / "estimates.jpg"
        titles = [(r.name, f"{r.title} ({r.base})", r.labels) for n in SHEET_ROWS
                  for r in rows(config.finetuning.euler) if r.name == n]  # fmt: skip
        done[path] = figures.draw_estimates(shown, truth, titles, path)
        path = folder / "bases.jpg"
        done[path] = figures.draw_bases(shown, path)
    document = Path(config.documents) / "thesis.md"
    temporary = document.with_name(f".{document.name}.part")
    temporary.write_text(document_text(config, data), encoding="utf-8")
    os.replace(temporary, document)
    return [str(path) for path, drawn in done.items() if drawn] + [str(document)]


def _curves(data: dict[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """(row, its name in the legend) of rows, at all rates of which they have runs."""
    return [(run, f"{BASE_OF[name]}, rate {rate}") for name in names for run, rate in rates_of(data, "runs", name).items()]


def _truth(config: ThesisConfig) -> list[tuple[Any, Any, Any, Any]]:
    """(picture, log label, normals, valid) of the scenes that are shown."""
    result = []
    for index in (i for i in SHOWN if i < len(DOMAINS) * config.pictures.held_out):
        scene = held_out_scene(index, config.pictures)
        result.append((scene.image, label_of(scene.depth, scene.mask, "log"), scene.normal, scene.mask))
    return result


def _figure(config: ThesisConfig, name: str, about: str) -> str:
    """A figure, when it has been drawn."""
    file = Path(config.documents) / "thesis" / name
    return f"![{about}](thesis/{name})\n" if file.is_file() else ""


def _tally(config: ThesisConfig, data: dict[str, Any]) -> str:
    seeds = [str(seed) for seed in config.seeds]
    found = [decide(claim, data, seeds).verdict for claim in CLAIMS]
    counts = [f"{found.count(v)} {v}" for v in VERDICTS if v in found]
    few = " What is not certain with so few seeds is called undecided." if "undecided" in found else ""
    return f"Of {len(found)} claims: " + ", ".join(counts) + f".{few}{_no_better_than_blind(data, seeds)}"


def _no_better_than_blind(data: dict[str, Any], seeds: Sequence[str]) -> str:
    """A sentence where the improved editor has learned little from its pictures; nothing otherwise."""
    guess = data["floor"].get(guess_key("log"), {}).get("all")
    scores = [data["runs"][f"id6/{seed}"]["scores"]["all"]["abs_rel"] for seed in seeds if f"id6/{seed}" in data["runs"]]
    if guess is None or not scores:
        return ""
    mean = sum(scores) / len(scores)
    if mean < 0.9 * guess["abs_rel"]:
        return ""
    return (
        f" **With this little training the estimators see hardly more than a guess that does not look**: AbsRel {mean:.3f} of the "
        f"improved editor, {guess['abs_rel']:.3f} of the guess. Differences between bases are therefore small, and little can be decided."
    )


def _blind_by_labels(data: dict[str, Any]) -> str:
    """What the guesses alone score, which is why labels are not compared by their rows alone; nothing without them."""
    found = [(scheme, data["floor"][guess_key(scheme)]["all"]["abs_rel"]) for scheme in LABELS if guess_key(scheme) in data["floor"]]
    if not found:
        return ""
    order = "; ".join(f"{scheme} {value:.3f}" for scheme, value in sorted(found, key=lambda pair: pair[1]))
    return f"""
A guess that does not look, the mean label of each place of the training scenes, has an AbsRel of its own in each kind of label:
{order}.
No network is in these numbers: they come from the quantity in which the two numbers of the fit are found. Rows with different
labels stand in this order before they have learnt anything; what they say of labels is how much better each is than its guess.
"""


def _about_rates(data: dict[str, Any], seeds: list[str]) -> str:
    """How claims that compare bases are decided; nothing where all bases have one rate."""
    if not tables.equal_rates_table(data, seeds):
        return ""
    own = ", ".join(f"{base} {best_rate(data, base):g}" for base in BASES)
    return f"""
Claims that compare fine-tuned bases are read at equal learning rates, as the paper keeps its hyperparameters equal. The best rates
here are not equal ({own}), and a rate alone changes losses and how far features move. So
bases whose best rates differ were also trained at each other's, and such a claim is decided only where both rates say the same.
"""


def _state(config: ThesisConfig, data: dict[str, Any]) -> str:
    left = unfinished(config, data)
    total = len(config.seeds) * (len(rows(config.finetuning.euler)) + len(at_the_other_rate(data, config.finetuning.rates)))
    if not left:
        return f"All {total} runs are finished."
    names = sorted({key.split("/")[0] for key in left})
    return (
        f"\n\n**Not finished:** {total - len(left)} of {total} runs are in the tables; missing are seeds of\n"
        f"{', '.join(names)}.\nThe same command goes on where it was stopped and writes this page again. A claim "
        "with fewer than three seeds stays undecided."
    )


def _results(config: ThesisConfig, data: dict[str, Any]) -> str:
    """The tables and figures, as far as there is something to show."""
    seeds = [str(seed) for seed in config.seeds]
    all_rows, size = rows(config.finetuning.euler), config.pictures
    parts = []
    if data["floor"] or data["runs"]:
        estimates = _figure(config, "estimates.jpg", "estimates")
        if estimates:
            estimates += f"\nHeld-out scenes, seed {seeds[0]}: what each row says. Near is red; normals in OpenGL colours.\n"
        parts.append(f"""## Table 4 and Table 5

{tables.main_table(data, all_rows)}

CV: consistent velocity; FS: fixed start. Each base at its own best rate. The paper's numbers are for orientation:
other data, other size. The autoencoder is small and was trained on logarithmic labels at a higher resolution; what it loses of
*true* labels, in the last lines, is a floor under every row: at {size.width}x{size.height} a thing before the lens is a few latents wide.

{estimates}
## Labels

{tables.label_table(data, all_rows)}
{_blind_by_labels(data)}
## Normals

{tables.normal_table(data)}
""")
    equal = tables.equal_rates_table(data, seeds)
    if equal:
        parts.append(f"""## Bases at equal rates

{equal}

Means, their difference and half its 95 % interval. The last column is what the other tables show, each base at its own best
rate: it decides nothing.
""")
    losses = _figure(config, "losses.png", "loss, improved") + "\n" + _figure(config, "losses_direct.png", "loss, direct")
    if losses.strip():
        parts.append(f"## Loss (Fig. 4)\n\n{losses}")
    if data["features"]:
        parts.append(f"""## Features (Fig. 3)

{_figure(config, "features.png", "features")}
Norm over channels of the answer's half (zeros at the start) behind three blocks, as in the paper, each map on its own scale, seed
{seeds[0]}, each base at its own best rate; {size.height // 8}x{size.width // 8} values a map. Eyes are no measure, so:

{tables.feature_table(data)}

The first rows say how much of the held-out scenes' log-depth a linear reading of one token explains beyond what its place tells
(R2); the last ones how alike the features of one base are before and after fine-tuning (linear CKA, 1 is the same).
""")
    edits = tables.edit_table(data, seeds)
    if edits:
        parts.append(f"""## The bases at their own work

{_figure(config, "bases.jpg", "bases")}
Pairs that neither has seen.

{edits}

Latent errors after {config.finetuning.euler} Euler steps, seeds {", ".join(seeds)}. Where the editor is not below the source
itself, it has learnt to copy and to repair more than to do what it is told.
""")
    rates = tables.rate_table(data)
    if rates:
        parts.append(f"""## Learning rates

Latent error on the validation scenes, row 6, seed {config.sweep_seed}:

{rates}
""")
    return "\n".join(parts) + ("\n" if parts else "")


def document_text(config: ThesisConfig, data: dict[str, Any]) -> str:
    """The whole page."""
    seeds = [str(seed) for seed in config.seeds]
    size, first, second = config.pictures, config.pretraining, config.finetuning
    tokens = size.height * size.width // 256
    net = config.network
    shape = f"Width {net.width}, {net.double_blocks} + {net.single_blocks} blocks."
    link = "[thesis/results.json](thesis/results.json)" if config.results.is_file() else "thesis/results.json"
    return f"""# From editor to estimator, in miniature

The paper says that an image editor makes a better geometry estimator than an image generator, and explains which changes
to its training matter. Its models have twelve billion parameters. Here the same comparison is made where everything can
be known: two tiny transformers of FLUX's form, alike in every respect but one, on ray-cast scenes with exact geometry.

    python -m train thesis --workers 2

It renders, trains, scores, and writes this page, its figures and {link}, in as many processes as `--workers`
says; killed at any time, it goes on where it was. Processor time so far: {data["seconds"] / 60:.1f} minutes of one core. {_state(config, data)}

{_tally(config, data)}

## What is compared

- **Scenes** of 0.1 to 80 m, {size.width}x{size.height} pixels: outdoors (streets, fields) and indoors (rooms, clutter, tables), many with a
  thing a hand's width before the lens. The autoencoder is that of `models/fe2e-nano.safetensors` and stays fixed; a
  picture is {tokens} tokens. {size.pairs} pairs for the bases, {size.scenes} labelled scenes for fine-tuning, {2 * size.held_out} held-out ones for the tables,
  {2 * size.validation} others for choosing learning rates; no scene in two of them.
- **The editor** is pretrained on edits (relight, recolour, move or remove a thing, denoise) as Step1X-Edit is: flow matching
  from noise to the edited picture with the source beside it in the sequence, and an instruction in numbers for a prompt.
  **The generator**, its twin, gets the same target pictures in the same order with the same noise and times, from the same
  first weights, for the same {first.steps} steps of {first.batch}, and a caption in numbers, but no source. {shape}
- **Fine-tuning** is the same for all rows: {second.steps} steps of {second.batch}, the same scenes in the same order, the prompt left blank, every
  weight trained, matrices by Muon (the paper trains LoRAs by AdamW; at this size a LoRA would be nearly all weights, and Muon
  gets further in few steps). Each base has the learning rate
  that was best for it, of the same few tried for all on a seed of their own; rows of one base share it, and
  rows that are compared for their bases are trained at the rate of either. DirectAdapt takes {second.euler} Euler steps.
- **Scores** are means over pictures, then over seeds (± is the standard deviation between seeds; each seed has other first
  weights, other noise and another order). Depth is fitted to the truth by two numbers in each label's own quantity, as
  the paper's protocol does; "true percentiles" reads the label with the scene's own range instead, without any fit. The
  latent error is the training loss on held-out scenes: no decoder in it, comparable between rows of the same labels only.

## The claims

"Reproduced" and "not reproduced": the 95 % interval (Student's t) of the difference between runs paired by seed leaves out 0,
with at least three seeds, and the difference is at least 1 % of the larger value. The first quantity decides, the others stand
beside it. The intervals are not corrected for the number of claims.

Claims about labels compare AbsRel divided by that of a blind guess in the same labels, because the fit alone puts the guesses in
an order (see *Labels*). Such a claim is decided only where the better row is itself better than its own guess, by AbsRel and by
\u03b41, in the sense above: AbsRel weighs too far an answer to a near pixel most, so that one that is nearer as a whole gains in it
without having seen anything.
{_about_rates(data, seeds)}
{tables.claim_table(data, seeds)}

{_results(config, data)}## What this cannot say

The bases have seen {size.pairs} pairs of procedural pictures, not a billion photographs: what a generator knows of the world from
words, and an editor from real edits, is not here. Step1X-Edit was itself made out of FLUX; the twins here begin alike and
part. All scenes come from one ray-caster, so nothing is zero-shot. A difference that is undecided here may well be real.

{GENERATOR.capitalize()} and {EDITOR} differ in one more respect that cannot be taken away: the editor reads two pictures a step and so computes more.
"""
