"""The photographs of the gallery, all under free licences, and what anyone sees in them: which things stand nearer than
which, what lies and what stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent.parent / "docs" / "gallery" / "photographs"
_CC_BY_2 = "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)"
_CC_BY_4 = "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"
_LOMIRI = "Debian's lomiri-wallpapers; scaled down"


@dataclass(frozen=True)
class Photograph:
    """name: of its strip. bundled: its name in `skimage.data`, None for a file beside the gallery.

    points: named places, (x, y) as shares of width and height. order: "a < b" where a is nearer than b. lying, standing:
    places on surfaces that are level and upright. Written down from the photograph before any result was seen.
    """

    name: str
    title: str
    author: str
    licence: str
    source: str
    bundled: str | None = None
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    lying: tuple[str, ...] = ()
    standing: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """`order` as (nearer, farther)."""
        return [tuple(pair.split(" < ")) for pair in self.order]

    def load(self) -> Tensor:
        """(H,W,3) float32 in [0,1]."""
        if self.bundled is None:
            with Image.open(_FOLDER / f"{self.name}.jpg") as image:
                array = np.array(image.convert("RGB"))
        else:
            from skimage import data

            array = getattr(data, self.bundled)()
            array = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)
        return torch.from_numpy(array.astype(np.float32) / 255)


PHOTOGRAPHS = (
    Photograph(
        "drum", "A room with a drum", "Jakub Mede", _CC_BY_4, _LOMIRI,
        points={"sack": (0.35, 0.80), "drumhead": (0.47, 0.62), "table leg": (0.55, 0.45), "bottle": (0.49, 0.27),
                "wall": (0.70, 0.19), "loudspeaker": (0.10, 0.37), "front floor": (0.90, 0.93), "back floor": (0.90, 0.54),
                "floor": (0.90, 0.75)},
        order=("sack < bottle", "sack < table leg", "drumhead < wall", "front floor < back floor", "bottle < wall",
               "table leg < wall", "sack < loudspeaker", "drumhead < table leg"),
        lying=("floor",), standing=("wall", "loudspeaker"),
    ),
    Photograph(
        "coffee", "A cup of coffee", "Rachel Michetti", "CC0", "scikit-image", "coffee",
        points={"front of the saucer": (0.47, 0.92), "far table": (0.90, 0.10), "near table": (0.90, 0.92),
                "spoon": (0.61, 0.71), "front rim": (0.48, 0.505), "coffee": (0.48, 0.36)},
        order=("front of the saucer < far table", "near table < far table", "spoon < far table", "front rim < coffee",
               "front rim < far table", "front of the saucer < coffee"),
        lying=("near table", "coffee"),
    ),
    Photograph(
        "astronaut", "An astronaut", "NASA", "public domain", "scikit-image", "astronaut",
        points={"helmet": (0.80, 0.85), "face": (0.43, 0.24), "backdrop": (0.60, 0.12), "shuttle": (0.78, 0.38),
                "flag": (0.06, 0.12), "chest": (0.38, 0.62)},
        order=("helmet < face", "helmet < backdrop", "face < backdrop", "chest < backdrop", "helmet < shuttle",
               "face < shuttle", "chest < flag"),
        standing=("backdrop",),
    ),
    Photograph(
        "chelsea", "A cat", "Stefan van der Walt", "CC0", "scikit-image", "chelsea",
        points={"nose": (0.58, 0.80), "forehead": (0.52, 0.22), "eye": (0.37, 0.37), "ear": (0.82, 0.13),
                "right background": (0.93, 0.28), "left background": (0.03, 0.15), "neck": (0.08, 0.60)},
        order=("nose < right background", "nose < ear", "forehead < right background", "eye < left background",
               "nose < neck"),
    ),
    Photograph(
        "camera", "A photographer", "Lav Varshney", "CC0", "scikit-image", "camera",
        points={"coat": (0.25, 0.50), "head": (0.40, 0.22), "sky": (0.80, 0.10), "near grass": (0.40, 0.94),
                "far grass": (0.78, 0.51), "tower": (0.82, 0.31), "dome": (0.72, 0.36), "grass": (0.85, 0.75)},
        order=("coat < tower", "coat < sky", "coat < far grass", "near grass < far grass", "head < tower",
               "near grass < tower", "coat < dome", "head < sky"),
        lying=("grass", "near grass"),
    ),
    Photograph(
        "dogs", "Two dogs on a balcony", "Aitzol Berasategi", _CC_BY_4, _LOMIRI,
        points={"lower dog": (0.57, 0.52), "upper dog": (0.42, 0.29), "wall": (0.80, 0.18), "curtain": (0.44, 0.10),
                "post": (0.96, 0.76), "boards behind": (0.72, 0.70), "balcony": (0.30, 0.71)},
        order=("lower dog < wall", "upper dog < wall", "upper dog < curtain", "post < boards behind", "balcony < wall",
               "lower dog < boards behind"),
        standing=("wall", "balcony"),
    ),
    Photograph(
        "pavilion", "A pavilion", "danielbuechele", _CC_BY_2, "scikit-learn; scaled down",
        points={"left tree": (0.15, 0.93), "tower": (0.33, 0.48), "roof": (0.30, 0.22), "lake": (0.68, 0.60),
                "sky": (0.70, 0.20), "right tree": (0.95, 0.65), "bushes": (0.70, 0.85), "left sky": (0.08, 0.12)},
        order=("tower < sky", "tower < lake", "left tree < lake", "left tree < sky", "right tree < sky", "bushes < lake",
               "roof < left sky"),
        lying=("lake",), standing=("tower",),
    ),
    Photograph(
        "path", "A mountain path", "Aitzol Berasategi", _CC_BY_4, _LOMIRI,
        points={"near path": (0.20, 0.92), "near meadow": (0.70, 0.90), "meadow": (0.75, 0.78), "far meadow": (0.62, 0.66),
                "rock face": (0.55, 0.42), "sky": (0.50, 0.06), "left meadow": (0.15, 0.55), "left ridge": (0.06, 0.32)},
        order=("near path < far meadow", "near meadow < far meadow", "far meadow < rock face", "near path < rock face",
               "rock face < sky", "left meadow < left ridge", "left ridge < sky"),
        lying=("meadow",), standing=("rock face",),
    ),
    Photograph(
        "stream", "A stream in a wood", "Aitzol Berasategi", _CC_BY_4, _LOMIRI,
        points={"near water": (0.42, 0.96), "middle water": (0.45, 0.77), "upper water": (0.57, 0.43),
                "wood": (0.42, 0.08), "right rocks": (0.82, 0.85), "middle rock": (0.62, 0.62), "boulder": (0.56, 0.25)},
        order=("near water < upper water", "near water < wood", "right rocks < wood", "middle rock < boulder",
               "right rocks < upper water", "middle water < upper water", "boulder < wood"),
        lying=("near water", "middle water"),
    ),
    Photograph(
        "rocket", "A rocket launch", "SpaceX", "public domain", "scikit-image", "rocket",
        points={"rocket": (0.503, 0.60), "top of the rocket": (0.503, 0.40), "base": (0.50, 0.975), "left sky": (0.40, 0.20),
                "right sky": (0.65, 0.20)},
        order=("rocket < left sky", "top of the rocket < right sky", "base < left sky", "rocket < right sky"),
        standing=("rocket",),
    ),
)  # fmt: skip

REMARKS_FOR = "812fc274090c"
"""How the SHA-256 of the checkpoint begins that REMARKS were written for."""

REMARKS: dict[str, str] = {
    "drum": "The seat is a body on a lying floor, the drum a bulge on it; the table behind is two blocks of the wall, the bottle is lost.",
    "coffee": "The cup stands on its saucer, with its opening, its near side and the rim; the table lies only where it is near.",
    "astronaut": "The helmet and the near arm stand out and the head is before the wall, but it has no face, and her collar is a bowl.",
    "chelsea": "A near mass where the nose is, and no cat.",
    "camera": "The best of the ten: a man's outline with head, back and legs, the lawn lies, the sky is far; of the tripod "
    "only a hint.",
    "dogs": "Two walls with their edge where the boards change; the upper dog is a bulge, the lower one and the balcony are taken for "
    "ground.",
    "pavilion": "Tower, roofs and trees stand before the sky, and the tower has its storeys; the hill is flat ground.",
    "path": "The near meadow lies and the ridges stand, but the shadowed half of the meadow is taken for a wall.",
    "stream": "Rocks and a trunk come out of a wood that is one far surface; the water stands like a wall.",
    "rocket": "A night picture: the rocket is a thin dark line before a ground that never ends.",
    "scenes": "Rooms, floors and large bodies have their planes and corners; tables have legs. Edges are soft, small and thin things "
    "melt away, and what stands behind something is often merged with it.",
}
"""What a look at the results shows, by the name of a photograph; "scenes" for all procedural ones."""
