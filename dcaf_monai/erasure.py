"""What happens to an answer when the hottest parts of the picture go: deletion, insertion, ROAD.

Deletion and insertion (Petsiuk et al. 2018): pixels are replaced in order of their heat, the hottest
first, by a blurred copy of the picture (deletion), or put back into it (insertion), and the probability
of the explained class is followed. A good map makes deletion fall and insertion rise early.

ROAD (Rong et al. 2022): removed pixels are filled with what their neighbours say, the mean of the eight
around them (direct ones twice as heavy as diagonal ones), by solving that linear system for all of them
at once, and a little noise. Such a picture does not betray by its edges what was removed, so the network
cannot read the answer off the shape of the hole. Most relevant first (MoRF) should hurt, least relevant
first (LeRF) should not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import cg

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of the pixels that are replaced; closer at the beginning, where a small lesion goes."""
ROAD_FRACTIONS = (0.1, 0.2, 0.4, 0.7)
BLUR = 1 / 16
"""Standard deviation of the blur, as a share of the side: what is as small as a lesion is gone."""
NOISE = 0.01
"""Standard deviation of ROAD's noise; pictures lie in [0, 1]."""
DIRECT, DIAGONAL = 1 / 6, 1 / 12
TOLERANCE = 1e-5
"""Of the linear system's residual; pixels are then right to 0.0005, far below the noise."""

Answer = Callable[[np.ndarray, int], np.ndarray]
"""Pictures ``(n, rows, columns)`` made from a case, and its number -> probability of its class, ``(n,)``."""


@dataclass(frozen=True)
class Curves:
    """Probability of the explained class by what is gone, for each order of the pixels.

    Args:
        fractions: Of `deletion` and `insertion`, from 0 to 1.
        road_fractions: Of `morf` and `lerf`.
        deletion, insertion: By name of the order, ``(cases, fractions)``.
        morf, lerf: Most and least relevant removed and imputed, ``(cases, road fractions)``.
    """

    fractions: tuple[float, ...]
    road_fractions: tuple[float, ...]
    deletion: Mapping[str, np.ndarray]
    insertion: Mapping[str, np.ndarray]
    morf: Mapping[str, np.ndarray]
    lerf: Mapping[str, np.ndarray]

    def areas(self, name: str) -> dict[str, np.ndarray]:
        """Areas under deletion (lower is better) and insertion (higher is better), and the ROAD figures.

        ``road`` is the combined score, the mean over fractions of half of LeRF minus MoRF: 0 for an order
        that knows nothing, at most 0.5. Each ``(cases,)``.
        """
        morf, lerf = self.morf[name], self.lerf[name]
        return {"deletion": area(self.deletion[name], self.fractions),
                "insertion": area(self.insertion[name], self.fractions),
                "morf": morf.mean(1), "lerf": lerf.mean(1), "road": ((lerf - morf) / 2).mean(1)}


def curves(answer: Answer, pictures: np.ndarray, *, orders: Mapping[str, np.ndarray], seed: int = 0,
           fractions: Sequence[float] = FRACTIONS, road_fractions: Sequence[float] = ROAD_FRACTIONS,
           progress: Callable[[int, int], None] | None = None) -> Curves:
    """The curves of every case for several orders of its pixels.

    Args:
        answer: The network, seen as a function of pictures.
        pictures: ``(cases, rows, columns)`` in [0, 1].
        orders: By name, heat at every pixel, ``(cases, rows, columns)``.
        seed: Of the order of equal pixels and of the noise. All orders of a case share its noise, so that
            they differ by nothing but the order.
        fractions: Rising from 0 to 1.
        road_fractions: Each above 0 and below 1.
        progress: Told ``(cases done, cases)``.

    Raises:
        ValueError: For no case, heat of another shape, or fractions that do not fit.
    """
    pictures = np.asarray(pictures, np.float32)
    if pictures.ndim != 3 or not len(pictures):
        raise ValueError(f"pictures: need (cases, rows, columns) with at least one, got {pictures.shape}.")
    for name, heat in orders.items():
        if heat.shape != pictures.shape:
            raise ValueError(f"orders: need heat of shape {pictures.shape} for {name}, got {heat.shape}.")
    if list(fractions) != sorted(set(fractions)) or fractions[0] != 0 or fractions[-1] != 1 \
            or not all(0 < each < 1 for each in road_fractions):
        raise ValueError("fractions: need some that rise from 0 to 1, and ROAD's between them, "
                         f"got {tuple(fractions)} and {tuple(road_fractions)}.")
    found: dict[str, dict[str, list[np.ndarray]]] = {
        kind: {name: [] for name in orders} for kind in ("deletion", "insertion", "morf", "lerf")}
    inner = fractions[1:-1]  # nothing replaced and everything replaced are the same for all orders
    for case, picture in enumerate(pictures):
        blurred = gaussian_filter(picture, max(picture.shape) * BLUR, mode="nearest")
        noise = np.random.default_rng([seed, case]).normal(0, NOISE, picture.shape)
        made = [picture[None], blurred[None]]
        for heat in orders.values():
            ranks = hot_first(heat[case], seed=seed)
            made += [replaced(picture, blurred, ranks=ranks, fractions=inner),
                     replaced(blurred, picture, ranks=ranks, fractions=inner),
                     _imputed(picture, blurred, noise, ranks, road_fractions),
                     _imputed(picture, blurred, noise, ranks.size - 1 - ranks, road_fractions)]
        values = np.asarray(answer(np.concatenate(made).astype(np.float32), case), np.float64)
        whole, gone, told = values[0], values[1], values[2:]
        for name, part in zip(orders, np.split(told, len(orders)), strict=True):
            cuts = np.cumsum([len(inner), len(inner), len(road_fractions)])
            deletion, insertion, morf, lerf = np.split(part, cuts)
            found["deletion"][name].append(np.concatenate([[whole], deletion, [gone]]))
            found["insertion"][name].append(np.concatenate([[gone], insertion, [whole]]))
            found["morf"][name].append(morf)
            found["lerf"][name].append(lerf)
        if progress:
            progress(case + 1, len(pictures))
    arrays = {kind: {name: np.stack(rows) for name, rows in each.items()} for kind, each in found.items()}
    return Curves(tuple(fractions), tuple(road_fractions), **arrays)


def hot_first(heat: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Rank of every pixel, 0 for the hottest; equal ones in a random order.

    Much of a map is often exactly 0, and its pixels must not go row by row from the top.
    """
    chance = np.random.default_rng(seed).permutation(heat.size)
    ranks = np.empty(heat.size, np.intp)
    ranks[np.lexsort((chance, -heat.ravel()))] = np.arange(heat.size)
    return ranks.reshape(heat.shape)


def replaced(picture: np.ndarray, other: np.ndarray, *, ranks: np.ndarray,
             fractions: Sequence[float]) -> np.ndarray:
    """The picture with its first pixels from another one, ``(fractions, rows, columns)``."""
    counts = np.rint(np.asarray(fractions) * ranks.size)[:, None, None]
    return np.where(ranks < counts, other, picture)


def area(values: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Area under curves ``(..., fractions)`` by the trapezoid rule."""
    middle = (values[..., 1:] + values[..., :-1]) / 2
    return (middle * np.diff(fractions)).sum(-1)


def impute(picture: np.ndarray, removed: np.ndarray, *, guess: np.ndarray | None = None) -> np.ndarray:
    """The picture with its removed pixels filled in from those around them, without noise.

    Every removed pixel becomes the weighted mean of the neighbours it has: 1/6 for each direct one, 1/12 for
    each diagonal one, over the sum of these weights.

    Args:
        picture: ``(rows, columns)``.
        removed: bool ``(rows, columns)``; its values in ``picture`` do not matter.
        guess: Where the solution is looked for first; it changes the time only.

    Raises:
        ValueError: When nothing or no picture of that shape is left.
    """
    if removed.shape != picture.shape or removed.all():
        raise ValueError(f"removed: need a mask of shape {picture.shape} that leaves a pixel, got "
                         f"{removed.shape} with {int(np.sum(~removed))} left.")
    out = np.array(picture, np.float64)
    if not removed.any():
        return out
    weights, total = _neighbours(picture.shape)
    gone = removed.ravel()
    rows = weights[gone]
    known = rows @ np.where(gone, 0, out.ravel())
    system = sparse.diags_array(total[gone]) - rows[:, gone]
    start = np.clip((picture if guess is None else guess).ravel()[gone].astype(np.float64), 0, 1)
    # symmetric and positive definite: conjugate gradients need a third of the time of a factorisation
    solution, failed = cg(system, known, x0=start, rtol=TOLERANCE, maxiter=20 * max(picture.shape))
    assert not failed, "conjugate gradients converge within a few times the side of the picture"
    out[removed] = solution
    return out


def _imputed(picture: np.ndarray, guess: np.ndarray, noise: np.ndarray, ranks: np.ndarray,
             fractions: Sequence[float]) -> np.ndarray:
    made = []
    for fraction in fractions:
        removed = ranks < round(fraction * ranks.size)
        filled = impute(picture, removed, guess=guess) + noise * removed
        made.append(np.clip(filled, 0, 1))
    return np.stack(made)


@lru_cache(maxsize=2)
def _neighbours(shape: tuple[int, int]) -> tuple[sparse.csr_array, np.ndarray]:
    """Weights between all pixels of a picture, ``(pixels, pixels)``, and each pixel's sum of them."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    pairs = [(index[:, 1:], index[:, :-1], DIRECT), (index[1:], index[:-1], DIRECT),
             (index[1:, 1:], index[:-1, :-1], DIAGONAL), (index[1:, :-1], index[:-1, 1:], DIAGONAL)]
    one = np.concatenate([a.ravel() for a, _, _ in pairs])
    other = np.concatenate([b.ravel() for _, b, _ in pairs])
    weight = np.concatenate([np.full(a.size, w) for a, _, w in pairs])
    half = sparse.coo_array((weight, (one, other)), shape=(index.size, index.size))
    weights = (half + half.T).tocsr()
    return weights, np.asarray(weights.sum(1)).ravel()
