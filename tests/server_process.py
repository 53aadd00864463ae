"""A real DCAF server process on loopback, for tests that talk to it over HTTP."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import psutil
import torch

from dcaf_monai.model import Model, new_version, save_model
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import write_films
from dcaf_monai.server.access import new_token
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing

TASK = TASKS["pneumonia"]
PATHS = ("studies", "model", "token_file", "certfile", "keyfile", "data", "cutoffs")
RUN = "import json, sys; from pathlib import Path; from dcaf_monai.server.serve import serve; " \
      "serve(**json.loads(sys.argv[1], object_hook=lambda d: " \
      f"{{k: Path(v) if k in {PATHS} and v else v for k, v in d.items()}}))"


def tiny_model(path: Path, *, seed: int = 0, name: str = "tiny", dropout: float = 0.3,
               bias: float = 0.0) -> Model:
    """A random network of the smallest backbones, saved as a model file.

    ``bias`` is added to the logit of the first class: a model that any training improves on.
    """
    torch.manual_seed(seed)
    network = DualCrossAttentionFusion(len(TASK.classes), backbones=("test_efficientnet", "test_resnet"),
                                       weights="none", width=8, heads=2, fused=8, hidden=8,
                                       dropout=dropout).eval()
    with torch.no_grad():
        network.head[-1].bias[0] += bias
    model = Model(network=network, task=TASK, preprocessing=Preprocessing(size=64), name=name, samples=4,
                  version=new_version(network))
    return save_model(model, path)


def studies(folder: Path, count: int = 6) -> Path:
    """Films in class folders, and a PNG and a JPEG of unequal sides with awkward names."""
    write_films(folder, count, seed=7, shapes=((96, 80), (80, 112)))
    ramp = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (80, 1))
    (folder / "other").mkdir(exist_ok=True)
    PIL.Image.fromarray(ramp).save(folder / "other" / "ramp.PNG")
    PIL.Image.fromarray(ramp.T.copy()).save(folder / "other" / "ramp 2.jpeg")
    return folder


@dataclass
class ServerProcess:
    """A running server; use as a context manager.

    Args:
        settings: Arguments of `serve`, JSON values.
        environment: Added to the process's environment.
    """

    settings: dict
    environment: dict = field(default_factory=dict)

    def __enter__(self) -> ServerProcess:
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps({"port": 0, "auto_score": False, **self.settings})],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment)
        self.url = self._wait(lambda: re.search(r"DCAF serves (\S+)", self.output()))[1]
        self._wait(lambda: "Application startup complete" in self.output())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.log.unlink(missing_ok=True)

    def output(self) -> str:
        """Everything the process has said."""
        return self.log.read_text()

    def client(self, **options) -> httpx.Client:
        """An HTTP client of this server."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def children(self) -> list[psutil.Process]:
        """Processes the server has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """Ends the process as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ends the process as an operator would; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def _wait(self, ready, timeout_s: float = 90):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := ready():
                return found
            if self.process.poll() is not None:
                raise RuntimeError(f"The server ended with {self.process.returncode}:\n{self.output()}")
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"The server is not up after {timeout_s} s:\n{self.output()}")


@functools.cache
def token_server() -> tuple[ServerProcess, dict[str, str]]:
    """One server with tokens and no model, and the tokens of ``ada``, ``bob`` and the ``chief``."""
    folder = Path(tempfile.mkdtemp(prefix="dcaf-test-"))
    studies(folder / "studies")
    tokens = {name: new_token(folder / "tokens", name, role)
              for name, role in (("ada", "reader"), ("bob", "reader"), ("chief", "admin"))}
    server = ServerProcess({"studies": str(folder / "studies"), "model": None, "task": TASK.name,
                            "token_file": str(folder / "tokens")})
    server.__enter__()
    atexit.register(server.stop)
    return server, tokens


@functools.cache
def shared_server() -> ServerProcess:
    """One server for all tests that leave nothing behind that others could trip over."""
    folder = Path(tempfile.mkdtemp(prefix="dcaf-test-"))
    studies(folder / "studies")
    tiny_model(folder / "model.safetensors")
    server = ServerProcess({"studies": str(folder / "studies"), "model": str(folder / "model.safetensors")})
    server.__enter__()
    atexit.register(server.stop)
    return server


def images(client: httpx.Client) -> list[str]:
    """Ids of the server's images."""
    return sorted(client.get("/datastore/", params={"output": "all"}).raise_for_status().json()["objects"])
