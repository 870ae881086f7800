"""Full and read-only disks, odd names, no network."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.comfyui import ROOT
from tools.server import ComfyServer, PromptError
from tools.soak.prompts import CHECKPOINT, Prompts, digest, write_picture
from tools.soak.result import Result

#: Every part of a path in it is one that some program gets wrong.
ODD_NAME = "größe 深度 it's a (test) #1 %40 ü"
_SAVERS = {"FE2ESaveNPZ": {"geometry": ["estimate", 0]}, "FE2ESaveEXR": {"geometry": ["estimate", 0]},
           "FE2ESavePNG16": {"image": ["estimate", 1]}}  # fmt: skip


@contextmanager
def _small_disk(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs over `folder`; gives False, and mounts nothing, where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def disks(server: ComfyServer) -> Result:
    """Every saver on a disk that is full, one that is read-only, and a file-size limit, which any user may set."""
    result, prompts = Result("disks"), Prompts(server)
    expected = digest(server.run(prompts.reference(), 900))
    folders = {"full": (server.output / "small", "size=48k"), "read-only": (server.output / "fixed", "ro")}
    tried, kinds = 0, []

    def refused(kind: str, folder: str, where: str, words: tuple[str, ...]) -> None:
        nonlocal tried
        prompt = prompts.estimate(160, 128, {"size": "native size"})
        prompt["saver"] = prompts.node(kind, **_SAVERS[kind], filename_prefix=f"{folder}/x")
        tried += 1
        try:
            server.run(prompt, 900)
            result.require(kind == "FE2ESavePNG16", f"{kind} on a {where} disk said nothing")
        except PromptError as error:
            result.require("OSError" in str(error) and any(w in str(error) for w in words), f"{kind} on a {where} disk: {error}")

    for where, (folder, options) in folders.items():
        with _small_disk(folder, options) as mounted:
            if not mounted:
                continue
            kinds.append(where)
            for kind in _SAVERS:
                refused(kind, folder.name, where, ("free some room",))
                left = [path.name for path in folder.iterdir() if not path.name.endswith(".png")]
                result.require(not left, f"{kind} left {left} on a {where} disk")
    limits = resource.prlimit(server.process_id, resource.RLIMIT_FSIZE)
    most = server.log_path.stat().st_size + 65_536  # the log is a file as well
    kinds.append("file-size limit")
    try:
        resource.prlimit(server.process_id, resource.RLIMIT_FSIZE, (most, limits[1]))
        prompt = prompts.estimate(640, 512, {"size": "longest side", "size__longest_side": 64})
        prompt["saver"] = prompts.node("FE2ESaveNPZ", geometry=["estimate", 0], filename_prefix="limit/x", compress=False)
        tried += 1
        try:
            server.run(prompt, 900)
            result.require(False, "a file beyond the limit was saved")
        except PromptError as error:
            result.require("free some room" in str(error), f"file-size limit: {error}")
    finally:
        resource.prlimit(server.process_id, resource.RLIMIT_FSIZE, limits)
    result.require(not list((server.output / "limit").iterdir()), "a file that was cut off is left")
    result.require(digest(server.run(prompts.reference(), 900)) == expected, "the reference prompt gives another result afterwards")
    result.done = f"{tried} saves ({', '.join(kinds)})"
    result.found = "each refused with the file's name and the reason, nothing left behind, the server goes on"
    return result


def odd_server(folder: Path) -> ComfyServer:
    """A server, not started, whose every path has spaces and letters beyond ASCII in it."""
    models = folder / f"models {ODD_NAME}"
    (models / "fe2e").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "models" / CHECKPOINT, models / "fe2e" / f"{ODD_NAME}.safetensors")
    return ComfyServer(folder / ODD_NAME, models=models, pack_name=f"pack {ODD_NAME}")


def names(server: ComfyServer, expected: str) -> Result:
    """Every kind of file under an odd name on a server of `odd_server`. expected: digest of the reference elsewhere."""
    result = Result("names")
    picture = write_picture(server.input, f"{ODD_NAME}.png")
    prompts = Prompts(server, picture, f"{ODD_NAME}.safetensors")
    prompt = prompts.reference(f"{ODD_NAME}/depth {ODD_NAME} %width%")
    for kind, inputs in _SAVERS.items():
        prompt[kind] = prompts.node(kind, **inputs, filename_prefix=f"{ODD_NAME}/{kind} {ODD_NAME}")
    prompt["mesh"] = prompts.node("FE2EMesh", geometry=["estimate", 0])
    prompt["glb"] = prompts.node("SaveGLB", mesh=["mesh", 0], filename_prefix=f"{ODD_NAME}/mesh {ODD_NAME}")
    prompt["checkpoint"] = prompts.node("FE2ESaveCheckpoint", fe2e_model=["model", 0], filename=ODD_NAME)
    done = server.run(prompt, 900)
    result.require(digest(done) == expected, "another result than under plain names")
    saved = sorted(path.suffix for path in (server.output / ODD_NAME).iterdir())
    result.require(saved == [".exr", ".glb", ".npz", ".png"], f"saved: {saved}")
    result.require(len(list((server.models / "fe2e").glob("*.safetensors"))) == 2, "the checkpoint is not beside the one it was loaded from")
    result.done = f"7 kinds of files and every folder under the name {ODD_NAME!r}"
    result.found = "all read and written; reference result the same to the last bit"
    return result


_OFFLINE = """
import fcntl, json, socket, struct, sys
from pathlib import Path
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
    try:
        probe.connect(("192.0.2.1", 9))
        sys.exit("there is a way out")
    except OSError:
        pass
from tools.server import ComfyServer
from tools.soak.prompts import Prompts, digest, write_picture
with ComfyServer(Path(sys.argv[1])) as server:
    write_picture(server.input)
    print(json.dumps(digest(server.run(Prompts(server).reference(), 900))))
"""


def offline(folder: Path, expected: str) -> Result:
    """A server that has only its own loopback: `unshare --net`, which is another network for one process."""
    result = Result("no network")
    ways = ([], ["--map-root-user"])  # root needs no user of its own
    command = next((["unshare", "--net", *way] for way in ways if shutil.which("unshare") and subprocess.run(
        ["unshare", "--net", *way, "true"], capture_output=True).returncode == 0), None)  # fmt: skip
    if command is None:
        result.done = result.found = "not run: this user may not cut off the network"
        return result
    done = subprocess.run([*command, sys.executable, "-c", _OFFLINE, str(folder)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    result.require(done.returncode == 0, f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    if done.returncode == 0:
        result.require(json.loads(done.stdout.splitlines()[-1]) == expected, "another result than with a network")
    result.done = f"ComfyUI started and the reference prompt run under `{' '.join(command)}`"
    result.found = "it starts, loads, estimates and saves; reference result the same to the last bit"
    return result
