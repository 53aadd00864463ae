"""Whether heat lies where it should: the pointing game on known lesions, and energy inside a mask.

Pointing game (Zhang et al. 2016): a hit is a map whose peak lies on the lesion. The peak is the centre of
the hottest cell, and a cell is coarse, so the box is widened by half a cell on every side. The chance
level is the share of cells whose centre would be a hit.

Energy: share of a map's heat inside a mask (lungs, a lesion), beside the mask's share of the input, which is
what even heat would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nrrd
import numpy as np
import PIL.Image
import torch

from dcaf_monai.cohort import Case
from dcaf_monai.explainer import BATCH, Explainer, centre_prior, class_probabilities, explainer_for
from dcaf_monai.image import Geometry, Image, ImageError, Placement
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import SPACING_MM, phantom
from dcaf_monai.transforms import Preprocessing, image_to_input

Box = tuple[float, float, float, float]
Mask = Path | str | np.ndarray


@dataclass(frozen=True)
class Lesions:
    """Network inputs with one known lesion each.

    Args:
        inputs: float32 ``(films, 1, size, size)`` in [0, 1].
        boxes: ``(row0, column0, row1, column1)`` around each lesion, edge coordinates of the input.
        target: Index of the class that the lesion speaks for.
        source: Where they come from, in a word.
    """

    inputs: torch.Tensor
    boxes: tuple[Box, ...]
    target: int
    source: str = "given"

    def __post_init__(self) -> None:
        if self.inputs.ndim != 4 or self.inputs.shape[1] != 1 or not 0 < len(self.inputs) == len(self.boxes):
            raise ValueError("lesions: need inputs (films, 1, size, size) and as many boxes, at least one, "
                             f"got {tuple(self.inputs.shape)} and {len(self.boxes)}.")
        if any(box[0] >= box[2] or box[1] >= box[3] for box in self.boxes):
            raise ValueError("boxes: need (row0, column0, row1, column1), the first corner above and left of "
                             "the second, got others.")


@dataclass(frozen=True)
class Pointing:
    """Result of a pointing game.

    Args:
        hits: By kind, bool ``(films,)``; also of ``centre``, a map that always points to the middle.
        chance: By kind, ``(films,)``: share of the grid's cells that would be a hit.
        recognised: bool ``(films,)``, whether the network finds the lesion's class the most probable one.
        source: Of the films.
    """

    hits: Mapping[str, np.ndarray]
    chance: Mapping[str, np.ndarray]
    recognised: np.ndarray
    source: str


def phantom_lesions(preprocessing: Preprocessing, *, target: int, count: int = 24, seed: int = 0,
                    contrast: float | None = None, shape: tuple[int, int] = (224, 192)) -> Lesions:
    """Synthetic films with one lesion each, as a network with this preprocessing sees them.

    Args:
        preprocessing: Of the model.
        target: Index of the class that stands for the lesion.
        count: Films.
        seed: The same seed gives the same films.
        contrast: Of the lesions; by default that of the plain ones.
        shape: ``(rows, columns)`` of the films.

    Raises:
        ValueError: When ``count`` is not positive, and as of `phantom.phantom`.
    """
    if count < 1:
        raise ValueError(f"count: need at least one film, got {count}.")
    inputs, boxes = [], []
    for number in range(count):
        film = phantom(seed * 1_000_003 + number, lesion=True, shape=shape, contrast=contrast)
        assert film.lesion_box is not None
        geometry = Geometry(shape, (SPACING_MM, SPACING_MM))
        image = Image(f"phantom {number}", film.pixels.astype(np.float32), geometry)
        tensor, placement, _ = image_to_input(image, preprocessing)
        inputs.append(tensor)
        boxes.append(box_on_input(film.lesion_box, placement))
    return Lesions(torch.stack(inputs), tuple(boxes), target, "phantoms")


def box_on_input(box: Sequence[float], placement: Placement) -> Box:
    """A box in edge coordinates of the stored image, in those of the network's input."""
    (top, left), (down, right) = placement.edge, placement.scale
    return ((box[0] - top) / down, (box[1] - left) / right, (box[2] - top) / down, (box[3] - left) / right)


def pointing_game(network: DualCrossAttentionFusion, lesions: Lesions, *, kinds: Sequence[str] | None = None,
                  explainer: Explainer | None = None, batch_size: int = BATCH) -> Pointing:
    """The pointing game on given lesions, for every kind of map.

    Args:
        network: In eval mode.
        lesions: What must be pointed at.
        kinds: Some of `heat.KINDS`; by default all that the network has.
        explainer: Gives other maps in their place.
        batch_size: Inputs that go through the network at once.

    Raises:
        ValueError: For a kind the network does not have.
    """
    explain = explainer or explainer_for(network, kinds)
    inputs = lesions.inputs.to(next(network.parameters()).device)
    size = inputs.shape[-1]
    maps = dict(explain(network, inputs, [lesions.target] * len(lesions.boxes)))
    probs = class_probabilities(network, inputs, batch_size=batch_size)
    played = {**maps, "centre": np.repeat(centre_prior(size)[None], len(lesions.boxes), axis=0)}
    hit = {kind: hits(found, lesions.boxes, size=size) for kind, found in played.items()}
    chance = {kind: chances(found.shape[1:], lesions.boxes, size=size) for kind, found in played.items()}
    return Pointing(hit, chance, probs.argmax(1) == lesions.target, lesions.source)


def pointing_game_on_phantoms(network: DualCrossAttentionFusion, preprocessing: Preprocessing, *, target: int,
                              count: int = 24, seed: int = 0, kinds: Sequence[str] | None = None) -> Pointing:
    """`pointing_game` on `phantom_lesions`. It means something only for a network that recognises them."""
    return pointing_game(network, phantom_lesions(preprocessing, target=target, count=count, seed=seed),
                         kinds=kinds)


def hits(maps: np.ndarray, boxes: Sequence[Box], *, size: int) -> np.ndarray:
    """Whether the hottest cell's centre lies in the box widened by half a cell, bool ``(films,)``.

    A blank map (all values equal) has no peak and never hits.
    """
    found = []
    for values, box in zip(maps, boxes, strict=True):
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        inside = _inside(values.shape, box, size)
        found.append(bool(inside[row, column]) and values.max() > values.min())
    return np.array(found)


def chances(grid: tuple[int, ...], boxes: Sequence[Box], *, size: int) -> np.ndarray:
    """Share of a grid's cells whose centre would be a hit, ``(films,)``."""
    return np.array([_inside(grid, box, size).mean() for box in boxes])


def _inside(grid: tuple[int, ...], box: Box, size: int) -> np.ndarray:
    """bool ``(rows, columns)``: cells whose centre lies in the box, give or take half a cell."""
    rows, columns = (np.arange(cells) + 0.5 for cells in grid)  # in cells
    down, right = size / grid[0], size / grid[1]
    return (((box[0] / down - 0.5 <= rows) & (rows <= box[2] / down + 0.5))[:, None]
            & ((box[1] / right - 0.5 <= columns) & (columns <= box[3] / right + 0.5)))


def energy_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of the heat inside a mask; NaN of a map without heat.

    Args:
        heat: ``(rows, columns)``, not negative.
        mask: bool or share of each pixel, same shape.
    """
    total = float(heat.sum(dtype=np.float64))
    return float((heat * mask).sum(dtype=np.float64)) / total if total > 0 else float("nan")


def mask_files(folder: Path, cases: Iterable[Case]) -> dict[str, Path]:
    """The masks of a folder by image name: for ``film.dcm`` the file ``film.png`` or ``film.nrrd``.

    Raises:
        ValueError: For no such folder, no mask of any of the cases, or a name that two masks or two images
            have.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"masks: need a folder of masks, got {Path(folder).name!r}, which is none.")
    files, images = Counter[str](), dict[str, set[Path]]()
    place: dict[str, Path] = {}
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix.lower() in (".png", ".nrrd"):
            place[file.stem] = file
            files[file.stem] += 1
    masks = {}
    for case in cases:
        if (name := case.path.stem) in place:
            images.setdefault(name, set()).add(case.path)
            masks[case.uid] = place[name]
    if not masks:
        raise ValueError("masks: need files named as the images, FILM.png or FILM.nrrd for FILM.dcm, got "
                         "none for any image of the split.")
    if any(files[name] > 1 or len(paths) > 1 for name, paths in images.items()):
        raise ValueError("masks: need one mask for one image of the same name, got a name that two of them "
                         "have. Rename one.")
    return masks


def masks_on_input(masks: Mapping[str, Mask], uids: Sequence[str],
                   places: Sequence[tuple[Placement, Geometry]]) -> list[np.ndarray | None]:
    """The mask of each image on the network's input.

    Args:
        masks: Image name to a mask on the image's *stored* grid: an array ``(rows, columns)``, or a PNG or
            NRRD file. Whatever is not 0 is inside. An image may have none.
        uids: Names of the images.
        places: For each image how the input covers it, and its geometry.

    Returns:
        bool ``(size, size)`` or None, one an image; what reaches beyond the image is outside.

    Raises:
        ImageError: For a file that cannot be read, or a mask of another shape than its image.
        ValueError: When there are not as many places as names.
    """
    if len(uids) != len(places):
        raise ValueError(f"places: need one an image ({len(uids)}), got {len(places)}.")
    return [_on_input(masks[uid], placement, geometry.shape) if uid in masks else None
            for uid, (placement, geometry) in zip(uids, places, strict=True)]


def _on_input(mask: Mask, placement: Placement, shape: tuple[int, int]) -> np.ndarray:
    values = mask if isinstance(mask, np.ndarray) else _read_mask(Path(mask), shape)
    _check_shape(values.shape, shape)
    out, index = np.zeros((placement.input_size,) * 2, bool), []
    for axis in (0, 1):  # the stored pixel under the centre of each input pixel
        edge = placement.edge[axis] + (np.arange(placement.input_size) + 0.5) * placement.scale[axis]
        index.append(np.floor(edge).astype(int))
    rows, columns = ((each >= 0) & (each < length) for each, length in zip(index, shape, strict=True))
    out[np.ix_(rows, columns)] = values[np.ix_(index[0][rows], index[1][columns])] != 0
    return out


def _read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The file's values as ``(rows, columns)``; its size is checked before its pixels are read."""
    kind = path.suffix.lower()
    try:
        if kind == ".png":
            with PIL.Image.open(path, formats=["PNG"]) as picture:
                _check_shape(picture.size[::-1], shape)
                if picture.mode in ("LA", "RGBA"):  # what is see-through is outside
                    return np.asarray(picture)[..., -1] * np.asarray(picture)[..., :-1].any(-1)
                values = np.asarray(picture)
                return values.any(-1) if values.ndim == 3 else values
        if kind == ".nrrd":
            sizes = tuple(int(each) for each in nrrd.read_header(str(path))["sizes"])
            _check_shape(sizes[1::-1] if sizes[2:] in ((), (1,)) else sizes, shape)
            values, _ = nrrd.read(str(path))
            return values.reshape(sizes[:2], order="F").T
    except (OSError, SyntaxError, KeyError, ValueError, nrrd.NRRDError,
            PIL.Image.DecompressionBombError) as error:
        raise ImageError("mask", f"mask: need a PNG or NRRD file, got one that cannot be read "
                         f"({type(error).__name__}). Write it again.") from error
    raise ImageError("mask", f"mask: need a PNG or NRRD file, got {kind or 'no suffix'}.")


def _check_shape(found: tuple[int, ...], shape: tuple[int, int]) -> None:
    if tuple(found) != shape:
        raise ImageError("mask_shape", f"mask: need the stored image's {shape[0]} rows and {shape[1]} "
                         f"columns, got {' x '.join(map(str, found))}. Give a mask of the same grid.")
