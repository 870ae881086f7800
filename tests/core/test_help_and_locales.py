"""Help pages and translations, read as files: complete, alike in all languages, and readable by the interface.

tests/nodes/test_translations.py compares them with the nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
LANGUAGES = ("zh", "ja")
NODES = sorted(path.name for path in DOCS.iterdir() if path.is_dir() and path.name.startswith("FE2E"))
#: Letters of Chinese and of Japanese.
WRITTEN = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]"}
KANA = "[\u3040-\u30ff]"


def strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every string in nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{path}.{key}")
    else:
        assert isinstance(value, str), path
        yield path, value


def locale(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def markdown(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def words(path: Path) -> Iterator[str]:
    """The texts of a page as the interface would show them, without code."""

    def visit(tokens) -> Iterator[str]:
        for token in tokens:
            if token.children:
                yield from visit(token.children)
            elif token.type == "text":
                yield token.content

    yield from visit(MarkdownIt("commonmark").enable("table").parse(markdown(path)))


def test_only_the_files_that_comfyui_reads() -> None:
    found = sorted(path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*") if path.is_file())
    assert found == sorted(f"{language}/{name}.json" for language in LANGUAGES for name in ("main", "nodeDefs"))


@pytest.mark.parametrize("name", ["main", "nodeDefs"])
def test_the_languages_have_the_same_entries(name: str) -> None:
    first, *others = ({path for path, _ in strings(locale(language, name))} for language in LANGUAGES)
    assert first
    for other in others:
        assert other == first


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_interface_can_read_every_text(language: str) -> None:
    """Its translator (vue-i18n) takes { } for places to fill in, | for plurals and @ for links."""
    for name in ("main", "nodeDefs"):
        for path, text in strings(locale(language, name)):
            assert text.strip() == text != "", path
            assert not set("{}|@") & set(text), (path, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_in_their_language(language: str) -> None:
    """Every tooltip and description is; a name may be an abbreviation (VAE, PLY, X1)."""
    for path, text in strings(locale(language, "nodeDefs")):
        assert path.endswith(".name") or re.search(WRITTEN[language], text), (path, text)
        if language == "zh":
            assert not re.search(KANA, text), (path, text)


@pytest.mark.parametrize("node", NODES)
def test_each_node_has_a_page_in_every_language(node: str) -> None:
    pages = {path.stem: path for path in (DOCS / node).glob("*.md")}
    assert set(pages) == {"en", *LANGUAGES}
    for language, path in pages.items():
        text = markdown(path)
        title = text.splitlines()[0]
        assert title.startswith("# ")
        if language in LANGUAGES:
            assert title == "# " + locale(language, "nodeDefs")[node]["display_name"], "one name everywhere"
            assert re.search(WRITTEN[language], text)
        assert not [line for line in words(path) if "*" in line], f"{path}: emphasis that is not recognised"


@pytest.mark.parametrize("node", NODES)
def test_the_pages_have_the_same_parts(node: str) -> None:
    """Rows of tables, blocks of code and pictures: a translation that lags behind shows here."""

    def parts(language: str) -> tuple[int, int, list[str]]:
        text = markdown(DOCS / node / f"{language}.md")
        pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
        return sum(line.startswith("|") for line in text.splitlines()), text.count("```"), pictures

    assert parts("zh") == parts("en")
    assert parts("ja") == parts("en")
    assert parts("en")[2], "a page has a picture"


def test_pictures_are_there_small_and_all_used() -> None:
    """The interface resolves a picture's path from web/docs, whatever page it is on."""
    used = set()
    for page in DOCS.rglob("*.md"):
        for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown(page)):
            picture = (DOCS / path).resolve()
            assert picture.is_relative_to(DOCS)
            with Image.open(picture) as image:
                assert image.format == "JPEG"
                assert image.width <= 1000
            assert picture.stat().st_size < 100_000, path
            used.add(picture)
    assert used == {path.resolve() for path in DOCS.rglob("*.jpg")}
    assert used
