"""`python -m train fetch` against a local HTTP server that knows Range and cuts connections."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fe2e_core import release
from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.tensorfile import TensorFile
from tests.harness import tiny
from train import download, fetch


class Mirror:
    """Files by path. `cuts`: path -> how many bytes each of the next connections gives before it breaks."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, wanted = self.path.lstrip("/"), self.headers.get("Range")
                mirror.requests.append((path, wanted))
                body = mirror.files.get(path)
                if body is None:
                    self.send_error(404)
                    return
                first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and mirror.ranges else 0
                if wanted and mirror.ranges and first >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if wanted and mirror.ranges else 200)
                if wanted and mirror.ranges:
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()
                piece = body[first:]
                cuts = mirror.cuts.get(path, [])
                if cuts:
                    self.wfile.write(piece[: cuts.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(piece)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture()
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny.write_fe2e_parts(folder)
    return folder


@pytest.fixture()
def released(mirror: Mirror, source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Tiny files in the place of the released ones, on the mirror and in the table of digests."""
    contents = {}
    for part, file in release.FILES.items():
        body = (source / file.folder / (file.name if part != "vae" else tiny.VAE)).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        is_cache = part == "prompt-cache"
        known = {"git_blob": blob} if is_cache else {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        file = dataclasses.replace(file, **known)
        monkeypatch.setitem(release.FILES, part, file)
        mirror.files[file.address] = contents[part] = body
    return contents


def run(models: Path, mirror: Mirror, *more: str) -> int:
    models.mkdir(exist_ok=True)
    return fetch.main(["--models-dir", str(models), "--base-url", mirror.url, *more])


def leftovers(models: Path) -> list[str]:
    return sorted(path.name for path in models.rglob("*") if path.suffix in (".part", ".rejected"))


def test_fetches_everything_to_where_comfyui_looks_and_folds_it(tmp_path, mirror, released):
    models = tmp_path / "models"
    assert run(models, mirror, "--yes", "--fold") == 0
    for part, file in release.FILES.items():
        assert (models / file.folder / file.name).read_bytes() == released[part]
    assert leftovers(models) == []
    with TensorFile(models / "fe2e" / "fe2e-bf16.safetensors", "checkpoint") as file:
        checkpoint = read_checkpoint(file)
    assert checkpoint.info.base_sha256 == release.FILES["transformer"].sha256
    assert checkpoint.info.lora_sha256 == release.FILES["lora"].sha256
    assert "Apache-2.0" in checkpoint.info.license
    assert "MIT" in checkpoint.info.license
    # a second time fetches nothing
    asked = len(mirror.requests)
    assert run(models, mirror, "--yes") == 0
    assert len(mirror.requests) == asked


def test_goes_on_after_cuts_without_fetching_a_byte_twice(tmp_path, mirror, released):
    file = release.FILES["transformer"]
    size = len(released["transformer"])
    mirror.cuts[file.address] = [size // 3, size // 4, 0]
    assert run(tmp_path / "models", mirror, "--yes", "--what", "transformer") == 0
    starts = [0 if wanted is None else int(wanted[6:-1]) for path, wanted in mirror.requests if path == file.address]
    assert starts == [0, size // 3, size // 3 + size // 4, size // 3 + size // 4]
    assert (tmp_path / "models" / file.folder / file.name).read_bytes() == released["transformer"]


def test_a_later_run_goes_on_from_what_an_earlier_one_left(tmp_path, mirror, released):
    file, models = release.FILES["lora"], tmp_path / "models"
    half = len(released["lora"]) // 2
    mirror.cuts[file.address] = [half, 0, 0, 0, 0]
    assert run(models, mirror, "--yes", "--what", "lora") == 1
    assert leftovers(models) == ["LDRN.safetensors.part"]
    assert (models / file.folder / "LDRN.safetensors.part").stat().st_size == half
    mirror.cuts.clear()
    assert run(models, mirror, "--yes", "--what", "lora") == 0
    assert mirror.requests[-1][1] == f"bytes={half}-"
    assert (models / file.folder / file.name).read_bytes() == released["lora"]
    assert leftovers(models) == []


def test_a_server_without_ranges_is_read_from_the_beginning(tmp_path, mirror, released):
    mirror.ranges = False
    file = release.FILES["lora"]
    mirror.cuts[file.address] = [100]
    assert run(tmp_path / "models", mirror, "--yes", "--what", "lora") == 0
    assert (tmp_path / "models" / file.folder / file.name).read_bytes() == released["lora"]


@pytest.mark.parametrize("part", ["lora", "vae", "prompt-cache"])
def test_a_wrong_file_is_refused_and_never_gets_the_name(tmp_path, mirror, released, capsys, part):
    file, models = release.FILES[part], tmp_path / "models"
    body = bytearray(mirror.files[file.address])
    body[len(body) // 2] ^= 1
    mirror.files[file.address] = bytes(body)
    assert run(models, mirror, "--yes", "--what", part) == 1
    assert not (models / file.folder / file.name).exists()
    said = capsys.readouterr().out
    assert "expected" in said
    assert "not the released file" in said
    # and nobody goes on from it
    mirror.files[file.address] = released[part]
    assert run(models, mirror, "--yes", "--what", part) == 0
    assert (models / file.folder / file.name).read_bytes() == released[part]


def test_a_prompt_cache_that_cannot_be_read_is_refused(tmp_path, mirror, released, capsys, monkeypatch):
    file = release.FILES["prompt-cache"]
    monkeypatch.setitem(release.FILES, "prompt-cache", dataclasses.replace(file, git_blob=None))
    mirror.files[file.address] = b"version https://git-lfs.github.com/spec/v1\n"
    assert run(tmp_path / "models", mirror, "--yes", "--what", "prompt-cache") == 1
    assert "not a readable .npz archive" in capsys.readouterr().out
    assert not (tmp_path / "models" / file.folder / file.name).exists()


def test_a_file_of_the_user_is_never_replaced(tmp_path, mirror, released, capsys):
    file, models = release.FILES["vae"], tmp_path / "models"
    (models / file.folder).mkdir(parents=True)
    (models / file.folder / file.name).write_bytes(b"mine")
    assert run(models, mirror, "--yes", "--what", "vae") == 1
    assert (models / file.folder / file.name).read_bytes() == b"mine"
    assert "move it away" in capsys.readouterr().out
    assert mirror.requests == []


def test_room_is_checked_before_anything_comes(tmp_path, mirror, released, capsys, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    assert run(tmp_path / "models", mirror, "--yes") == 1
    assert "free some room" in capsys.readouterr().out
    assert mirror.requests == []


def test_licences_are_shown_and_have_to_be_accepted(tmp_path, mirror, released, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "no")
    assert run(tmp_path / "models", mirror) == 1
    said = capsys.readouterr().out
    assert mirror.requests == []
    for file in release.FILES.values():
        assert file.license in said
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert run(tmp_path / "models", mirror, "--what", "lora") == 0


def test_dry_run_fetches_nothing(tmp_path, mirror, released, capsys):
    assert run(tmp_path / "models", mirror, "--dry-run") == 0
    assert mirror.requests == []
    assert list((tmp_path / "models").iterdir()) == []
    assert "GiB" in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path, mirror, released, capsys):
    mirror.files.clear()
    assert run(tmp_path / "models", mirror, "--yes", "--what", "lora") == 1
    assert "404" in capsys.readouterr().out


def test_addresses_of_the_release(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert fetch.address(release.FILES["lora"], None) == "https://huggingface.co/exander/FE2E/resolve/main/LDRN.safetensors"
    cache = fetch.address(release.FILES["prompt-cache"], None)
    assert cache == ("https://raw.githubusercontent.com/AMAP-ML/FE2E/262d4c9d4c37752c984304f57ca7d7066f34ad5d/"
                     "latent/no_info.npz")
