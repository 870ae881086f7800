"""The rows of the paper's Tables 4 and 5, and what the study adds to them. The order is the order of the runs."""

from __future__ import annotations

from dataclasses import dataclass

from train.recipe import Objective
from train.thesis.network import EDITOR, GENERATOR, SCRATCH
from train.thesis.pictures import EXACT


@dataclass(frozen=True)
class PaperNumbers:
    """AbsRel and delta1 in percent, as printed: KITTI, then ETH3D."""

    kitti: tuple[float, float]
    eth3d: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One way from a base to an estimator. labels: of the depth (`pictures.LABELS`). normals: the answer's half is
    supervised with normals in place of depth. dispersive: with that loss. paper: its numbers there, if it is there."""

    name: str
    title: str
    base: str
    objective: Objective
    labels: str = "log"
    normals: bool = False
    dispersive: bool = False
    paper: PaperNumbers | None = None


def _direct(euler: int) -> Objective:
    return Objective(start="noise", time="random", joint=False, quantization="uniform", steps=euler)


_FIXED = Objective(start="zero", time="one", joint=False)
_JOINT = Objective(start="zero", time="one", joint=True)


def rows(euler: int) -> tuple[Row, ...]:
    """All rows. euler: steps of the two whose velocity depends on the time."""
    consistent = Objective(start="noise", time="one", joint=False, quantization="uniform")
    numbers = PaperNumbers
    return (
        Row("id6", "6: Improved", EDITOR, _FIXED, paper=numbers((6.8, 95.6), (3.9, 98.6))),
        Row("id7", "7: Improved", GENERATOR, _FIXED, paper=numbers((7.1, 94.9), (4.5, 97.8))),
        Row("scratch", "6 without a base", SCRATCH, _FIXED),
        Row("id2", "2: DirectAdapt", EDITOR, _direct(euler), "uniform", paper=numbers((9.5, 91.4), (5.6, 96.2))),
        Row("id1", "1: DirectAdapt", GENERATOR, _direct(euler), "uniform", paper=numbers((9.7, 91.2), (6.0, 96.0))),
        Row("id4", "4: CV, FS", EDITOR, _FIXED, "uniform", paper=numbers((8.6, 94.0), (4.8, 97.3))),
        Row("id3", "3: CV", EDITOR, consistent, "uniform", paper=numbers((8.8, 93.2), (5.0, 97.2))),
        Row("id8", "8: FE2E, joint", EDITOR, _JOINT, paper=numbers((6.6, 96.0), (3.8, 98.7))),
        Row("normals", "6, normals alone", EDITOR, _FIXED, normals=True),
        Row("id5", "5: inverse labels", EDITOR, _FIXED, "inverse", paper=numbers((6.9, 95.1), (4.6, 98.2))),
        Row("dispersive", "4 + dispersive loss", EDITOR, _FIXED, "uniform", dispersive=True,
            paper=numbers((8.4, 94.4), (4.5, 97.6))),
        Row("sqrt", "4, square-root labels", EDITOR, _FIXED, "sqrt"),
        Row("exact", "4, labels not rounded", EDITOR, _FIXED, EXACT),
    )  # fmt: skip


PHASES = (("id6", "id7"), ("scratch", "id2", "id1", "id4", "id3", "id8", "normals"), ("id5", "dispersive", "sqrt", "exact"))
"""Every seed of a phase before the next phase: an early end leaves whole comparisons."""

TWINS = (("id6", "id7"), ("id6", "scratch"), ("id2", "id1"))
"""Rows that are compared for their bases. A base has the rate that is best for it, so each also runs at the other's."""

BASE_OF = {row.name: row.base for row in rows(1)}
LABELS_OF = {row.name: row.labels for row in rows(1)}
