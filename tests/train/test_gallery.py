"""The gallery: free photographs with their makers named, strips that stay small, a page that shows only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.gallery import LIMIT, SCENES, Entry, main, strip
from benchmarks.gallery_check import judge, table
from benchmarks.gallery_pictures import PHOTOGRAPHS, REMARKS


def test_ten_photographs_each_with_its_licence_and_maker() -> None:
    assert len(PHOTOGRAPHS) == SCENES == 10 and len({item.name for item in PHOTOGRAPHS}) == 10
    for item in PHOTOGRAPHS:
        image = item.load()
        assert image.ndim == 3 and image.shape[2] == 3 and 0 <= float(image.min()) < float(image.max()) <= 1
        assert re.search(r"CC0|CC BY|public domain", item.licence) and item.author and item.source
        places = {place for pair in item.pairs for place in pair} | {*item.lying, *item.standing}
        assert places == set(item.points) and all(0 <= share < 1 for place in item.points.values() for share in place)
        assert len(item.pairs) == len(set(item.pairs)) >= 4 and not {(b, a) for a, b in item.pairs} & set(item.pairs)
    assert set(REMARKS) <= {item.name for item in PHOTOGRAPHS} | {"scenes"}


def test_near_is_near_floors_lie_and_walls_stand() -> None:
    drum = PHOTOGRAPHS[0]
    rows = torch.linspace(1, -1, 100)[:, None].expand(100, 80)  # lower is nearer
    facing = torch.tensor([0.0, 0.0, -1.0]).expand(100, 80, 3)
    verdict = judge(drum, rows, facing)
    assert (verdict.ordered, verdict.guessed, verdict.pairs) == (8, 8, 8)
    assert (verdict.upright, verdict.surfaces, verdict.slanted) == (2, 3, ("floor",))
    assert "8 of 8 pairs right. Lying and standing: 2 of 3; wrong: floor." in verdict.sentence()

    floor = facing.clone()
    floor[50:] = torch.tensor([0.0, -0.8, -0.6])  # y points down
    assert judge(drum, rows, floor).slanted == ()
    ceiling = facing.clone()
    ceiling[:50] = torch.tensor([0.0, 0.8, -0.6])
    assert judge(drum, rows, ceiling).slanted == ("floor", "wall", "loudspeaker")

    far = rows.clone()
    far[75:85, 25:31] = 2.0  # where the sack is
    assert judge(drum, far, floor).wrong == ("sack < bottle", "sack < table leg", "sack < loudspeaker")
    assert judge(drum, torch.zeros(100, 80), floor).ordered == 0  # no depth at all is no order
    assert table([("one", verdict), ("two", verdict)])[-1] == "| all | 16 of 16 | 16 | 4 of 6 |"


def test_a_strip_of_noise_still_fits() -> None:
    noise = torch.rand(192, 240, 3, generator=torch.Generator().manual_seed(0))
    assert 10_000 < len(strip(Entry("noise", "noise", ((noise,) * 4,)))) <= LIMIT
    with pytest.raises(ValueError, match="noise: no JPEG"):
        strip(Entry("noise", "noise", ((noise,) * 4,) * 8))


def test_the_page_names_maker_licence_and_the_error_of_a_scene(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--only", "coffee", "scene-0"])
    page = (tmp_path / "gallery.md").read_text()
    linked = re.findall(r"\]\((gallery/[^)]+)\)", page)
    assert linked == ["gallery/coffee.jpg", "gallery/scene-0.jpg"]
    for name, width in zip(linked, (972, 972), strict=True):
        assert (tmp_path / name).stat().st_size <= LIMIT
        with Image.open(tmp_path / name) as image:
            assert image.width == width
    assert re.search(r"\*\*A cup of coffee\.\*\* .*Nearer and farther: \d of 6 pairs right", page)
    assert "Rachel Michetti, CC0" in page and re.search(r"\| held-out scene 0 \| 0\.\d{3} \| \d+\.\d \|", page)
