"""``dcaf demo``: the whole loop on synthetic films, through the same doors a person would use.

Films are written, a small model is trained by ``dcaf train``, served by ``dcaf serve`` on loopback,
asked over HTTP, corrected as a reader would, retrained by the server and asked again. What stands
from an earlier run is used again.
"""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import httpx
from rich.console import Console

from dcaf_monai.phantom import write_films
from dcaf_monai.report import FilmRow, write_report

CORRECTIONS = 12
READER = "demo-reader"
SMALL = ("--mode", "full", "--backbones", "test_efficientnet,test_resnet", "--weights", "none",
         "--width", "32", "--fused", "64", "--size", "128", "--batch-size", "16")

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step that did not come to its end; what it said stands above, or in the log it names."""


@dataclass
class _Film:
    """One film of the pool: its name in the system, the truth, and what the models said of it."""

    uid: str
    path: Path
    label: str
    corrected: bool = False
    answers: list[dict] = field(default_factory=list)
    overlays: list[bytes] = field(default_factory=list)


def run(folder: Path, *, seed: int = 0, training_films: int = 240, unread_films: int = 36,
        epochs: int = 18) -> Path:
    """Run the loop and write ``report.html``.

    Args:
        folder: Where films, model, server state and report go.
        seed: Seed of films and training.
        training_films: Films the first model learns from and is judged by.
        unread_films: Films that wait for a reader.
        epochs: Epochs of the first training at most.

    Returns:
        Path of the report.

    Raises:
        DemoError: When the training or the server fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.safetensors"
    console.print(f"[bold]1[/bold] Write {training_films} synthetic training films and "
                  f"{unread_films} unread ones")
    table = _training_films(folder / "training", training_films, seed)
    pool = _pool(folder, unread_films, seed + 1)
    _train(model, table, seed, epochs)
    port = _free_port()
    with _server(folder, model, table, port) as client:
        console.print(f"\n[bold]4[/bold] Ask the server about {len(pool)} films")
        _ask(client, pool)
        console.print(f"[bold]5[/bold] Read up to {CORRECTIONS} cases, the most uncertain first")
        _correct(client, pool)
        console.print("[bold]6[/bold] Retrain with the reader's labels")
        verdict = _retrain(client)
        console.print(f"  {verdict}", markup=False)
        console.print("[bold]7[/bold] Ask again, with the model now in place")
        _ask(client, pool)
    report = folder / "report.html"
    write_report(report, [FilmRow(path=film.path, label=film.label, corrected=film.corrected,
                                  before=film.answers[0], after=film.answers[1],
                                  overlay_before=film.overlays[0], overlay_after=film.overlays[1])
                          for film in pool], verdict=verdict)
    _say_next(folder, model, table, report)
    return report


def _training_films(folder: Path, count: int, seed: int) -> Path:
    table = folder / "labels.csv"
    if not table.exists():
        write_films(folder, count, seed=seed)
    return table


def _pool(folder: Path, count: int, seed: int) -> list[_Film]:
    """Unread films, all in one folder, so that nothing but the picture tells their class."""
    films, truth = folder / "films", folder / "truth.csv"
    if not truth.exists():
        fresh = folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        films.mkdir(exist_ok=True)
        write_films(fresh, count, seed=seed)
        with (fresh / "labels.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        with truth.with_suffix(".part").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "label"])
            for number, row in enumerate(rows):
                name = f"film-{number:02d}.dcm"
                shutil.copyfile(fresh / row["file"], films / name)
                writer.writerow([name, row["label"]])
        truth.with_suffix(".part").replace(truth)
        shutil.rmtree(fresh)
    from dcaf_monai.dicom import sop_instance_uid

    with truth.open(encoding="utf-8") as stream:
        return [_Film(sop_instance_uid(films / row["file"]), films / row["file"], row["label"])
                for row in csv.DictReader(stream)]


def _train(model: Path, table: Path, seed: int, epochs: int) -> None:
    if model.exists():
        console.print("[bold]2[/bold] The model of an earlier run stands")
        return
    console.print("[bold]2[/bold] Train a small network from its own start (no pretrained weights)")
    settings = ("--task", "pneumonia", "--seed", str(seed), "--epochs", str(epochs), *SMALL)
    done = subprocess.run([sys.executable, "-m", "dcaf_monai.cli", "train", "--data", str(table),
                           "--out", str(model), *settings])
    if done.returncode:
        raise DemoError(f"training: need it to end well, got code {done.returncode}. See above.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(folder: Path, model: Path, table: Path, port: int) -> Iterator[httpx.Client]:
    """A real server process on loopback, stopped at the end."""
    console.print(f"\n[bold]3[/bold] Start the server on 127.0.0.1:{port}")
    log = folder / "server.log"
    command = [sys.executable, "-m", "dcaf_monai.cli", "serve", "--studies", str(folder / "films"),
               "--model", str(model), "--data", str(table), "--port", str(port)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait_until_up(client, process, log)
            yield client
    except httpx.HTTPError as error:
        raise DemoError(f"server: need an answer, got {type(error).__name__}. See {log}.") from error
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_up(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"server: it ended with code {process.returncode}. See {log}.")
        try:
            if client.get("/info/").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise DemoError(f"server: no answer within 120 s. See {log}.")


def _ask(client: httpx.Client, pool: list[_Film]) -> None:
    """One answer and one blended overlay for each film, over HTTP."""
    for film in pool:
        answer = client.post("/infer/dcaf", params={"image": film.uid, "output": "all"},
                             data={"params": json.dumps({"result_extension": ".png"})})
        parts = _multipart(answer.raise_for_status())
        film.answers.append(json.loads(parts["params"]))
        film.overlays.append(parts["image"])


def _multipart(answer: httpx.Response) -> dict[str, bytes]:
    """The parts of a ``multipart/form-data`` answer, by name."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + answer.content)
    leaves = [part for part in message.walk() if not part.is_multipart()]
    return {str(part.get_param("name", header="content-disposition")):
            bytes(part.get_payload(decode=True) or b"") for part in leaves}


def _correct(client: httpx.Client, pool: list[_Film]) -> None:
    """The reader takes what the queue gives, most uncertain first, and says what it is."""
    by_uid = {film.uid: film for film in pool}
    for _ in range(CORRECTIONS):
        case = client.post("/activelearning/entropy", json={"client_id": READER}).raise_for_status().json()
        if "id" not in case:
            console.print("  the queue is empty")
            return
        film = by_uid[case["id"]]
        annotation = {"label": film.label, "reader": READER, "comment": "demo"}
        client.put("/datastore/label", params={"image": film.uid, "tag": "final"},
                   files={"label": ("annotation.json", json.dumps(annotation), "application/json")},
                   ).raise_for_status()
        film.corrected = True
        said = film.answers[0]
        console.print(f"  {film.path.name}: model {said['prediction'][0]['label']} "
                      f"({said['prediction'][0]['score']:.2f}, entropy "
                      f"{said['uncertainty']['predictive_entropy']:.2f}), reader {film.label}", markup=False)


def _retrain(client: httpx.Client) -> str:
    """Start training on the server, show its progress, and give the gate's verdict."""
    client.post("/train/dcaf", json={}).raise_for_status()
    shown = ""
    while True:
        state = client.get("/dcaf/training").raise_for_status().json()
        line = f"  {state['state']}: {state.get('message', '')}"
        if line != shown:
            console.print(line, markup=False)
            shown = line
        if state["state"] in ("published", "refused", "done"):
            return state["message"]
        if state["state"] in ("failed", "stopped"):
            raise DemoError(f"training: it {state['state']}. {state.get('message', '')}")
        time.sleep(1)


def _say_next(folder: Path, model: Path, table: Path, report: Path) -> None:
    console.print(f"\n[bold]Done.[/bold] Open {report}")
    console.print("To serve it yourself (after `. .venv/bin/activate` in a new terminal):", markup=False)
    console.print(f"  dcaf serve --studies {folder / 'films'} --model {model} --data {table}", markup=False)
    console.print("In 3D Slicer: module DCAF Review, server address http://127.0.0.1:8000; how to install it "
                  "is in slicer_extension/README.md.", markup=False)
