"""The numbers of the paper's Tables 2 and 3, as printed: percent for AbsRel, delta1 and 11.25 degrees, degrees for the
mean error; None where the paper has a dash. `rank` is the printed average rank."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH_COLUMNS = ("nyuv2-depth", "kitti", "eth3d", "scannet-depth", "diode")
NORMAL_COLUMNS = ("nyuv2-normal", "scannet-normal", "ibims", "sintel")


@dataclass(frozen=True)
class PaperRow:
    """One method: `cells` holds (lower is better, higher is better) for each benchmark of the table's columns."""

    method: str
    data: str
    cells: tuple[tuple[float, float] | None, ...]
    rank: float


def _row(method: str, data: str, *numbers: float | None) -> PaperRow:
    *values, rank = numbers
    pairs = zip(values[::2], values[1::2], strict=True)
    return PaperRow(method, data, tuple(None if a is None else (a, b) for a, b in pairs), rank)


_N = None
TABLE_2 = (
    _row("MiDaS", "2M", 11.1, 88.5, 23.6, 63.0, 18.4, 75.2, 12.1, 84.6, 33.2, 71.5, 10.6),
    _row("GeoWizard", "280K", 5.6, 96.3, 14.4, 82.0, 6.6, 95.8, 6.4, 95.0, 33.5, 72.3, 8.4),
    _row("GenPercept", "74K", 5.6, 96.0, 13.0, 84.2, 7.0, 95.6, 6.2, 96.1, 35.7, 75.6, 7.8),
    _row("Marigold v1.1*", "74K", 5.8, 96.1, 11.0, 88.8, 7.0, 95.5, 6.6, 95.3, 30.4, 77.3, 7.6),
    _row("Marigold*", "74K", 5.5, 96.4, 9.9, 91.6, 6.5, 95.9, 6.4, 95.2, 30.8, 77.3, 6.3),
    _row("DepthAnything V2", "62.6M", 4.5, 97.9, 7.4, 94.6, 13.1, 86.5, _N, _N, 26.5, 73.4, 5.4),
    _row("Lotus-G*", "59K", 5.4, 96.8, 8.5, 92.2, 5.9, 97.0, 5.9, 95.7, 22.9, 72.9, 4.7),
    _row("Diffusion-E2E-FT*", "74K", 5.4, 96.5, 9.6, 92.1, 6.4, 95.9, 5.8, 96.5, 30.3, 77.6, 4.6),
    _row("Lotus-D*", "59K", 5.1, 97.2, 8.1, 93.1, 6.1, 97.0, 5.5, 96.5, 22.8, 73.8, 3.7),
    _row("DepthAnything", "62.6M", 4.3, 98.1, 7.6, 94.7, 12.7, 88.2, 4.3, 98.1, 26.0, 75.9, 3.5),
    _row("FE2E (paper)", "71K", 4.1, 97.7, 6.6, 96.0, 3.8, 98.7, 4.4, 97.5, 22.8, 81.2, 1.4),
)
TABLE_3 = (
    _row("Marigold (normals)*", "74K", 20.9, 50.5, 21.3, 45.6, 18.5, 64.7, _N, _N, 9.5),
    _row("GeoWizard*", "280K", 18.9, 50.7, 17.4, 53.8, 19.3, 63.0, 40.3, 12.3, 8.9),
    _row("GenPercept*", "74K", 18.2, 56.3, 17.7, 58.3, 18.2, 64.0, 37.6, 16.2, 7.4),
    _row("StableNormal*", "250K", 18.6, 53.5, 17.1, 57.4, 18.2, 65.0, 36.7, 14.1, 7.2),
    _row("Lotus-G*", "59K", 16.5, 59.4, 15.1, 63.9, 17.2, 66.2, 33.6, 21.0, 5.2),
    _row("DSINE", "160K", 16.4, 59.6, 16.2, 61.0, 17.1, 67.4, 34.9, 21.5, 4.6),
    _row("Lotus-D*", "59K", 16.2, 59.8, 14.7, 64.0, 17.1, 66.4, 32.3, 22.4, 3.0),
    _row("Diffusion-E2E-FT*", "74K", 16.5, 60.4, 14.7, 66.1, 16.1, 69.7, 33.5, 22.3, 2.6),
    _row("Marigold v1.1 (normals)*", "77K", 16.1, 60.5, 14.5, 66.1, 16.3, 68.5, _N, _N, 2.0),
    _row("FE2E (paper)*", "71K", 16.2, 59.6, 13.8, 67.2, 15.1, 70.6, 31.2, 22.3, 1.6),
)


def average_rank(cells: tuple[tuple[float, float] | None, ...], table: tuple[PaperRow, ...]) -> float | None:
    """The rank of one method among itself and the paper's, averaged over the cells it has; equals share the better
    rank. None without cells. With the paper's own rows this gives the printed ranks to their rounding, but for two:
    Lotus-D 3.5 and DepthAnything 3.7 in Table 2, where the paper prints 3.7 and 3.5."""
    ranks = []
    for column, cell in enumerate(cells):
        if cell is None:
            continue
        others = [row.cells[column] for row in table if row.cells[column] is not None]
        ranks.append(1 + sum(other[0] < cell[0] for other in others))
        ranks.append(1 + sum(other[1] > cell[1] for other in others))
    return sum(ranks) / len(ranks) if ranks else None
