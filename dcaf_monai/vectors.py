"""One vector per image of a cohort: what a cheap model learns on when a network would cost too much.

The default vector is the mean over all cells of the four trunk maps. The trunks have seen no label of
the cohort, so a simulation on them pretends nothing. The pooled vector of a trained network is shorter
and better, but was made with the labels of every training case: an experiment that asks how few labels
suffice must not use it, except for labels given after that training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcaf_monai.cohort import Cohort
from dcaf_monai.features import FORMAT, Records, fill, input_cache, trunk_sha256
from dcaf_monai.image import Notice
from dcaf_monai.model import weights_sha256
from dcaf_monai.network import DualCrossAttentionFusion, optimised
from dcaf_monai.transforms import Preprocessing

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Vectors:
    """The readable cases of a cohort as vectors, in the cohort's order.

    Args:
        values: ``(cases, units)`` float32.
        labels: ``(cases,)`` class indices.
        groups: ``(cases,)`` patients.
        split: ``(cases,)``, each ``train``, ``val`` or ``test``.
        classes: Class names.
        notices: What was left out, and what speaks against the vectors.
    """

    values: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    split: np.ndarray
    classes: tuple[str, ...]
    notices: tuple[Notice, ...] = ()


def pooled_trunk_features(cohort: Cohort, network: DualCrossAttentionFusion, *, preprocessing: Preprocessing,
                          cache: Path, device: str = "cpu", batch_size: int = 8,
                          progress: Progress | None = None) -> Vectors:
    """The four trunk maps of every image, each averaged over its cells; no label has touched them.

    Args:
        cohort: The cases.
        network: Whose trunks; used in eval mode.
        preprocessing: How an image becomes an input.
        cache: Folder of all caches; a vector is computed once per file content and trunk weights.
        device: Where the trunks run.
        batch_size: Images at once.
        progress: Called with (done, total) of the images that the trunks have not seen.

    Raises:
        CacheError: When the disk is too small or refuses, or a feature does not fit float16.
    """
    trunks = optimised(network).to(device)

    return _vectors(cohort, lambda x: trunks.trunks(x).averaged(), f"trunk {trunk_sha256(network)}",
                    preprocessing, cache, device, batch_size, progress)


def pooled_model_features(cohort: Cohort, network: DualCrossAttentionFusion, *, preprocessing: Preprocessing,
                          cache: Path, device: str = "cpu", batch_size: int = 8,
                          progress: Progress | None = None) -> Vectors:
    """The pooled vector of a trained network for every image, with the notice that labels are in it.

    Arguments and errors are those of `pooled_trunk_features`.
    """
    twin = optimised(network).to(device)
    name = f"model {weights_sha256(network.state_dict())}"
    found = _vectors(cohort, lambda x: twin.fuse(twin.trunks(x)).pooled, name, preprocessing, cache, device,
                     batch_size, progress)
    leak = Notice("labels_in_vectors", "The vectors come from a trained model. If it was trained on this "
                  "cohort, its labels are in them, and the labels a simulation counts are too few.")
    return Vectors(found.values, found.labels, found.groups, found.split, found.classes,
                   (leak, *found.notices))


def _vectors(cohort: Cohort, pooled: Callable[[torch.Tensor], torch.Tensor], name: str,
             preprocessing: Preprocessing, cache: Path, device: str, batch_size: int,
             progress: Progress | None) -> Vectors:
    inputs = input_cache(cohort.cases, preprocessing, cache)
    with torch.no_grad():
        units = pooled(torch.zeros(1, 1, preprocessing.size, preprocessing.size, device=device)).shape[1]
    key = hashlib.sha256(f"{FORMAT} {name} {preprocessing.model_dump_json()}".encode()).hexdigest()[:16]
    records = Records(Path(cache) / f"vectors-{key}", (units,))
    rows = fill(records, inputs, pooled, device=device, batch_size=batch_size, progress=progress)
    notices = list(cohort.notices)
    if inputs.refused:
        notices.append(Notice("unreadable", f"{len(inputs.refused)} images could not be read and are left "
                              "out."))
    return Vectors(
        np.asarray(records.values[rows], np.float32),
        np.array([cohort.task.class_index(case.label) for case in inputs.cases], np.int64),
        np.array([case.group for case in inputs.cases]), np.array([case.split for case in inputs.cases]),
        cohort.task.classes, tuple(notices))
