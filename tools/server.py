"""A real ComfyUI process with this pack in it, driven over its HTTP interface. Used by the demo and by the
tests.

Everything the process reads or writes (custom_nodes, models, input, output, temp, user, database) lies below
one folder of the caller, so that neither the ComfyUI tree nor a user's installation is touched. Standard
library only.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.comfyui import ROOT, obtain
from tools.guard import Guard

logger = logging.getLogger(__name__)

Prompt = dict[str, Any]
#: Model folders that the extra paths file announces below one tree.
MODEL_FOLDERS = ("checkpoints", "controlnet", "diffusion_models", "fe2e", "loras", "text_encoders", "vae")

#: Seconds. A server that computes on every core answers late.
REPLY_TIMEOUT = 120


class PromptError(RuntimeError):
    """A prompt was refused or failed. `details` is ComfyUI's own report (node errors or the execution error).
    """

    def __init__(self, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class Interrupted(RuntimeError):
    """The prompt was interrupted while it ran."""


@dataclass(frozen=True)
class Result:
    """One executed prompt: its id, ComfyUI's outputs by node id, and the nodes that really ran (not from
    cache).
    """

    prompt_id: str
    outputs: Mapping[str, Any]
    executed: tuple[str, ...]
    server: ComfyServer

    def files(self, node_id: str, kind: str = "images") -> list[Path]:
        """Paths of the files that an output node reported, in order."""
        return [self.server.file(entry) for entry in self.outputs.get(node_id, {}).get(kind, [])]


class ComfyServer:
    """`with ComfyServer(folder) as server: server.run(prompt)`.

    folder: receives base directory, log and database. models: a tree with the usual folder names (`vae`,
    `loras`, ...), announced through an extra_model_paths file. pack: folder linked as
    `custom_nodes/<pack_name>`, or None for none. arguments: further command line arguments of ComfyUI.
    python: the interpreter that runs ComfyUI, this one when None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Path | None = None,
        pack: Path | None = ROOT,
        pack_name: str = "fe2e",
        arguments: Sequence[str] = (),
        comfyui: Path | None = None,
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.base = self.folder / "base"
        self.input, self.output, self.temp = (self.base / name for name in ("input", "output", "temp"))
        self.custom_nodes = self.base / "custom_nodes"
        self.models = models
        self.log_path = self.folder / "comfyui.log"
        self.port = 0
        self._comfyui = comfyui
        self._arguments = tuple(arguments)
        self._environment = dict(environment or {})
        self._python = python or Path(sys.executable)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / pack_name
        if pack is not None and not link.exists():
            link.symlink_to(Path(pack).resolve(), target_is_directory=True)

    # -- the process
    # -------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        """Of the running process. Raises RuntimeError when none runs."""
        if self._process is None:
            raise RuntimeError("ComfyUI is not running; start it first")
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything the process has written so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, timeout: float = 600.0) -> None:
        """Starts the process and waits until it answers; else RuntimeError with the end of the log."""
        tree = self._comfyui or obtain()
        self.port = _free_port()
        command = [
            str(self._python), "-u", str(tree / "main.py"), "--cpu",
            "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{self.folder / 'comfyui.db'}",
            "--disable-auto-launch", "--disable-api-nodes", *self._arguments,
        ]  # fmt: skip
        if self.models is not None:
            command += ["--extra-model-paths-config", str(self._extra_paths(self.models))]
        environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
            **self._environment,
        }  # fmt: skip
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._guard = Guard(self._process.pid)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                code = self._process.returncode
                self.stop()
                raise RuntimeError(f"ComfyUI ended with {code} while starting:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {timeout:.0f} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """Ends the process that this object started (its group, politely first)."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill(self) -> None:
        """Ends the process as a crash would: without a chance to finish or clean up anything."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def restart(self) -> None:
        """A fresh process over the same folders."""
        self.stop()
        self.start()

    def _extra_paths(self, models: Path) -> Path:
        path = self.folder / "extra_model_paths.yaml"
        # JSON is YAML, and quotes what YAML would take for a comment or a mapping
        lines = ["fe2e_models:", f"    base_path: {json.dumps(str(Path(models).resolve()), ensure_ascii=False)}"]
        lines += [f"    {name}: {name}" for name in MODEL_FOLDERS]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    # -- the interface
    # -----------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """Decoded JSON of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=REPLY_TIMEOUT) as reply:
            return json.load(reply)

    def get_bytes(self, path: str) -> bytes:
        """Body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=REPLY_TIMEOUT) as reply:
            return reply.read()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Decoded JSON of a POST (None when the reply is empty)."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=REPLY_TIMEOUT) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """/object_info, of all nodes or one."""
        return self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else ""))

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Posts a prompt in API format and returns its id. PromptError with the node errors when it is
        refused.
        """
        body: dict[str, Any] = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            details = json.loads(error.read() or b"{}")
            raise PromptError(f"refused: {json.dumps(details)[:4000]}", details) from None

    def wait(self, prompt_id: str, timeout: float = 300.0) -> Result:
        """Waits for a queued prompt. PromptError when a node raised, Interrupted, or TimeoutError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            except TimeoutError:  # it computes and does not answer: what counts is the deadline
                continue
            if entry is not None:
                return self._result(prompt_id, entry)
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while it ran a prompt:\n{self.log[-4000:]}")
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout:.0f} s:\n{self.log[-4000:]}")

    def run(self, prompt: Prompt, timeout: float = 300.0) -> Result:
        """`queue` and `wait`."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        """Interrupts what runs now."""
        self.post("/interrupt", {})

    def file(self, entry: Mapping[str, str]) -> Path:
        """Path of one file entry ({filename, subfolder, type}) of an output."""
        root = {"output": self.output, "temp": self.temp, "input": self.input}[entry.get("type", "output")]
        return root / entry.get("subfolder", "") / entry["filename"]

    def _result(self, prompt_id: str, entry: Mapping[str, Any]) -> Result:
        messages = entry["status"]["messages"]
        cached: set[str] = set()
        for kind, data in messages:
            if kind == "execution_error":
                parts = ("node_type", "exception_type", "exception_message")
                text = ": ".join(str(data.get(part)) for part in parts)
                raise PromptError(text, data)
            if kind == "execution_interrupted":
                raise Interrupted(f"interrupted at node {data.get('node_id')} ({data.get('node_type')})")
            if kind == "execution_cached":
                cached.update(data.get("nodes", ()))
        executed = tuple(node for node in entry["prompt"][2] if node not in cached)
        return Result(prompt_id, entry["outputs"], executed, self)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
