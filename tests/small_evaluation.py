"""What the tests of evaluation share: an untrained model, and films of noise with a square."""

from __future__ import annotations

import base64
import csv
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture

from dcaf_monai.calibration import OperatingPoint
from dcaf_monai.evaluate import Settings
from dcaf_monai.image import Geometry, Image
from dcaf_monai.model import Model, Provenance
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing, image_to_input
from dcaf_monai.uncertainty import dropout_masks, sample_logits

torch.set_num_threads(1)
TASK = TASKS["pneumonia"]
QUICK = Settings(resamples=40, shift_images=3, severities=(3,), explain=1, prevalence={"pneumonia": .05})


def a_model(seed: int, **changes) -> Model:
    torch.manual_seed(seed)
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), weights="none",
                                       width=8, heads=2, fused=16, hidden=12, dropout=.05)
    network.eval()
    rng = np.random.default_rng(0)
    films = [Image("film", a_film(rng, 6 * number).astype(np.float32), Geometry((72, 96)))
             for number in range(13)]
    inputs = torch.stack([image_to_input(film, Preprocessing(size=64))[0] for film in films])
    with torch.no_grad():
        network.head[-1].weight.mul_(200)  # an untrained head is unsure of everything ...
        pooled = network.fuse(network.trunks(inputs)).pooled
        logits = sample_logits(network.head, pooled, dropout_masks(network.head, samples=6, seed=seed))
        network.head[-1].bias.sub_(logits.mean(0).median(0).values)  # ... and says one class of all
    model = Model(network, TASK, Preprocessing(size=64), version=f"v{seed}", samples=6, seed=seed,
                  temperature=2.0, operating_points={"pneumonia": OperatingPoint(
                      cutoff=.5, criterion="sensitivity", target=.9, achieved=.9, n=30)},
                  provenance=Provenance(seed=seed, mode="full").model_dump(mode="json"))
    return replace(model, **changes)


def a_film(rng: np.random.Generator, bright: float) -> np.ndarray:
    pixels = rng.normal(90, 20, (72, 96))
    pixels[20:44, 50:74] += bright
    return pixels.clip(0, 255).astype(np.uint8)


def a_table(folder: Path, label=lambda number: TASK.classes[number % 2],
            broken: tuple[int, ...] = ()) -> Path:
    """Films of two to a patient: 4 to train on, 60 to tune on, 24 to test on."""
    rng, rows = np.random.default_rng(2), []
    for number in range(88):
        split = "train" if number < 4 else "val" if number < 64 else "test"
        Picture.fromarray(a_film(rng, 6 * (number % 13))).save(folder / f"secretname{number}.png")
        if number in broken:
            (folder / f"secretname{number}.png").write_bytes(b"\x89PNG nothing")
        rows.append((f"secretname{number}.png", "pneumonia", label(number), split, f"doe{number // 2}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "task", "label", "split", "group"), *rows])
    return folder / "labels.csv"


class Taken(HTMLParser):
    """A page taken apart: tags that do not close, references, pictures, words."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.references: list[str] = []
        self.pictures: list[tuple[str, bytes]] = []
        self.words, self.tags, self.ids = "", set(), set()
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        self.references += [found[name] for name in ("href", "src", "action", "srcset") if name in found]
        if tag == "img":
            self.pictures.append((found["alt"], base64.b64decode(found["src"].split(",", 1)[1])))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.words += data
