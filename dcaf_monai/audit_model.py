"""`Eyes`: what a model's trunks see of pictures, whole or masked, one vector each, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dcaf_monai.audit_probes import visible
from dcaf_monai.audit_rows import Row
from dcaf_monai.features import Records, trunk_sha256
from dcaf_monai.model import Model, weights_sha256
from dcaf_monai.network import optimised
from dcaf_monai.transforms import read_input

BATCH = 16
WHOLE = "whole"


class Eyes:
    """A model's view of pictures.

    Args:
        model: Trunks, fusion and preprocessing.
        cache: Folder for the vectors.
        device: Where the network runs.
    """

    def __init__(self, model: Model, cache: Path, *, device: str = "cpu") -> None:
        self.preprocessing, self.device = model.preprocessing, device
        self.network = optimised(model.network).to(device)
        words = f"{trunk_sha256(model.network)} {weights_sha256(model.network.state_dict())} " \
            f"{model.preprocessing.model_dump_json()}"
        self._folder = Path(cache) / f"pooled-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
        blank = torch.zeros(1, 1, model.preprocessing.size, model.preprocessing.size)
        vectors, self.trunk_numbers = self._see(blank)
        self._numbers = vectors.shape[1]

    def look(self, rows: Sequence[Row], contents: Sequence[str], mask: str = WHOLE, *,
             progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Vectors ``(rows, numbers)``: both trunks' maps averaged, then the fused vector.

        Args:
            rows: The pictures.
            contents: Digest of each file, under which its vector is kept.
            mask: ``whole``, or ``border`` or ``blackout``: the rest of the input is zero.
            progress: Called with (done, total).

        Raises:
            ImageError: For a file that cannot be read.
            CacheError: When the disk is full.
        """
        shown = torch.tensor(True) if mask == WHOLE \
            else torch.from_numpy(visible(mask, self.preprocessing.size))
        keys = [f"{content}:{row.frame or ''}" for row, content in zip(rows, contents, strict=True)]
        records = Records(self._folder / mask, (self._numbers,))
        with records.alone():
            missing = list({key: row for key, row in zip(keys, rows, strict=True)
                            if key not in records.row_of}.items())
            records.require_room(len(missing))
            for start in range(0, len(missing), BATCH):
                part = missing[start:start + BATCH]
                inputs = torch.stack([read_input(row.path, self.preprocessing, frame=row.frame)[1]
                                      for _, row in part])
                vectors, _ = self._see(torch.where(shown, inputs, torch.zeros(())))
                records.append([key for key, _ in part], vectors.astype(np.float16))
                if progress:
                    progress(start + len(part), len(missing))
            places = [records.row_of[key] for key in keys]
        return np.asarray(records.values[places], np.float32)

    def _see(self, inputs: torch.Tensor) -> tuple[np.ndarray, int]:
        """Vectors of inputs ``(batch, 1, size, size)``, and how many of their numbers are the trunks'."""
        with torch.no_grad():
            features = self.network.trunks(inputs.to(self.device))
            trunks = features.averaged()
            fused = self.network.fuse(features).pooled
        return torch.cat([trunks, fused], 1).float().cpu().numpy(), trunks.shape[1]
