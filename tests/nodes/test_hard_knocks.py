"""What `python -m tools.soak` does for hours, for seconds: one server under an odd name, and everything that happens to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.server import ComfyServer
from tools.soak import endurance, interruptions, restarts, sharing, surroundings
from tools.soak.prompts import Prompts, digest, write_picture
from tools.soak.result import Result


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with surroundings.odd_server(tmp_path_factory.mktemp("knocks")) as running:
        write_picture(running.input)
        yield running


def held(result: Result) -> None:
    assert result.failures == [], result
    assert result.done and result.found


def test_odd_names(server: ComfyServer) -> None:
    held(surroundings.names(server, digest(server.run(Prompts(server).reference()))))


def test_prompts_share_a_model(server: ComfyServer) -> None:
    held(sharing.share(server))


def test_interruptions(server: ComfyServer) -> None:
    held(interruptions.interrupt(server, 3, seed=3))


def test_full_and_read_only_disks(server: ComfyServer) -> None:
    held(surroundings.disks(server))


def test_many_prompts_at_once(server: ComfyServer) -> None:
    """Too few to see memory grow; that none fails and that the last equals the first is seen."""
    result, memory = endurance.endure(server, 6, seed=4, settled=0)
    held(result)
    assert len(memory) == 6 and min(memory) > 100


def test_a_killed_server_starts_clean(server: ComfyServer) -> None:
    held(restarts.kill(server, 1, seed=5, longest=2.0))
