"""A server that is killed in the middle of its work starts again, clean, with nothing half-done left behind."""

from __future__ import annotations

import math
import random
import re
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fe2e_core.exr import read_exr
from fe2e_core.tensorfile import TensorFile
from tools.server import ComfyServer
from tools.soak.prompts import Prompts, digest
from tools.soak.result import Result


def unreadable(folder: Path) -> list[str]:
    """Files of a folder that are not whole, and hidden ones that nobody will ever remove."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_dir():
                continue
            if path.name.startswith("."):
                raise ValueError("a hidden file")
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    for name in arrays.files:
                        arrays[name]
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".exr":
                read_exr(path)
            elif path.suffix == ".safetensors":
                TensorFile(path).__exit__()
        except Exception as error:
            wrong.append(f"{path.name}: {error}")
    return wrong


def kill(server: ComfyServer, count: int, seed: int, longest: float = 6.0, seconds: float = math.inf) -> Result:
    """Kills the server `count` times, each a random time after a prompt that loads, estimates and saves four files; fewer
    times when `seconds` are over.
    """
    result, chance, prompts = Result("killed servers"), random.Random(seed), Prompts(server)
    expected = digest(server.run(prompts.reference(), 900))
    models = server.base / "models" / "fe2e"
    files = 0
    wanted, end = count, time.monotonic() + seconds
    for number in range(wanted):
        if time.monotonic() > end:
            count = number
            break
        prompt = prompts.estimate(320, 240, {"size": "native size"}, fold=number % 2 == 0)
        for name, kind in (("npz", "FE2ESaveNPZ"), ("exr", "FE2ESaveEXR")):
            prompt[name] = prompts.node(kind, geometry=["estimate", 0], filename_prefix=f"killed/{number}")
        prompt["png"] = prompts.node("FE2ESavePNG16", image=["estimate", 1], filename_prefix=f"killed/{number}")
        prompt["checkpoint"] = prompts.node("FE2ESaveCheckpoint", fe2e_model=["model", 0], filename=f"killed-{number}")
        server.queue(prompt)
        time.sleep(chance.uniform(0, longest))
        server.kill()
        seen = len(server.log)
        server.start(1800)
        said = re.sub(r"\x1b\[[0-9;]*m", "", server.log[seen:])
        result.require("IMPORT FAILED" not in said and "Traceback" not in said, f"restart {number} was not clean: {said[-500:]}")
        for folder in (server.output, models):
            wrong = [] if not folder.is_dir() else unreadable(folder)
            result.require(not wrong, f"after kill {number}: {wrong[:3]}")
            files += len(list(folder.rglob("*.*"))) if folder.is_dir() else 0
        result.require(digest(server.run(prompts.reference(), 900)) == expected, f"restart {number}: another result")
        for path in models.glob("killed-*"):
            path.unlink()
    result.done = f"{count} times SIGKILL a random time after a prompt that loads, estimates and saves four files (seed {seed})"
    if count < wanted:
        result.done += f"; {wanted} were asked for, {seconds / 60:.0f} min were over"
    result.found = f"{count} clean starts, no unfinished or hidden file, reference result the same to the last bit"
    return result
