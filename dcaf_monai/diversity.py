"""Batches of cases that are worth more together than one by one: what each adds to those before it.

Every function gives an order: each prefix of it is the batch of that size. All are greedy, seeded where
they draw, and take the first of equals.

Sources: BatchBALD, Kirsch et al. 2019 (arXiv 1906.08158); BADGE, Ash et al. 2020 (arXiv 1906.03671);
k-centre greedy, Sener and Savarese 2018 (arXiv 1708.00489); TypiClust, Hacohen et al. 2022 (arXiv
2202.02794).
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors

CONFIGURATIONS = 1024
"""So many joint answers of a batch BatchBALD keeps: all of them while they are no more, then samples."""
CANDIDATES = 2000
"""BatchBALD looks at so many cases, those of the highest mutual information: its cost is bounded."""
NEIGHBOURS = 20
CLUSTERS, SMALL_CLUSTER = 500, 5
MANY = 4000
"""From so many vectors on, k-means goes by mini-batches."""
ALL_PRODUCTS = 12_000
"""Up to so many cases BADGE multiplies all pairs at once (0.6 GB) when it is to order a good part of them."""
_BLOCK = 64  # candidates evaluated at once


def batch_bald(probs: np.ndarray, count: int, *, seed: int, configurations: int = CONFIGURATIONS,
               candidates: int = CANDIDATES) -> np.ndarray:
    """The batch whose answers together would tell most about which sampled network is right.

    Greedy. The joint answers of the cases chosen so far are enumerated with their probabilities while they
    are at most ``configurations``, so that the joint mutual information is exact; then as many are drawn,
    and each draws its next answer (an unbiased sample of the joint answers). What a case adds can only
    shrink as the batch grows, so a case is looked at again only when what it added last time could win.

    Args:
        probs: ``(samples, cases, classes)``; sample t of every case must come from one network.
        count: Cases wanted.
        seed: Of the draws.
        configurations: Joint answers kept.
        candidates: Cases looked at, those of the highest mutual information; the others follow in that
            order.

    Returns:
        ``(min(count, cases),)`` case numbers.
    """
    rng = np.random.default_rng(seed)
    probs = np.ascontiguousarray(probs.transpose(1, 0, 2), np.float64)  # (cases, samples, classes)
    doubt_within = _entropy(probs).mean(1)
    gains = _entropy(probs.mean(1)) - doubt_within
    by_information = np.argsort(-gains, kind="stable")
    looked_at, rest = by_information[:candidates], by_information[candidates:]
    answers = _JointAnswers(probs.shape[1], configurations, rng)
    left = looked_at.tolist()
    chosen: list[int] = []
    while left and len(chosen) < count:
        left.sort(key=lambda case: (-gains[case], case))
        done, best = 0, -np.inf
        while done < len(left) and (not done or (chosen and gains[left[done]] >= best)):
            block = left[done:done + _BLOCK]
            if chosen:
                gains[block] = answers.entropy_of_next(probs[block]) - doubt_within[block]
            best = max(best, gains[block].max())
            done += len(block)
        winner = min(left[:done], key=lambda case: (-gains[case], case))
        left.remove(winner)
        chosen.append(winner)
        answers.add(probs[winner])
    return np.array([*chosen, *rest][:count], np.int64)


class _JointAnswers:
    """Joint answers of the cases chosen so far: how probable each is, and what it says of the networks."""

    def __init__(self, samples: int, most: int, rng: np.random.Generator) -> None:
        self._most, self._rng, self._sampled = most, rng, False
        self._share = np.ones(1)  # probability of each configuration
        self._posterior = np.full((1, samples), 1 / samples)  # of the networks, given the configuration

    def entropy_of_next(self, probs: np.ndarray) -> np.ndarray:
        """Expected entropy ``(cases,)`` of one more answer of ``probs`` ``(cases, samples, classes)``."""
        cases, samples, classes = probs.shape
        told = self._posterior @ probs.transpose(1, 0, 2).reshape(samples, cases * classes)
        return self._share @ _entropy(told.reshape(-1, cases, classes))

    def add(self, probs: np.ndarray) -> None:
        """One more case, ``(samples, classes)``, joins."""
        told = self._posterior @ probs  # (configurations, classes)
        if not self._sampled and told.size > self._most:
            drawn = self._rng.choice(len(self._share), self._most, p=self._share / self._share.sum())
            self._posterior, told = self._posterior[drawn], told[drawn]
            self._share, self._sampled = np.full(self._most, 1 / self._most), True
        if self._sampled:
            edges = told.cumsum(1)
            answer = (self._rng.random((len(told), 1)) * edges[:, -1:] > edges).sum(1)
            joint = self._posterior * probs.T[answer]
        else:
            joint = (self._posterior[:, None] * probs.T[None]).reshape(-1, len(probs))
            self._share = (self._share[:, None] * told).ravel()
            possible = self._share > 0
            joint, self._share = joint[possible], self._share[possible]
        self._posterior = joint / joint.sum(1, keepdims=True)


def badge(probs: np.ndarray, vectors: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Cases whose gradients at the last layer are large and differ: k-means++ on gradient embeddings.

    The embedding of a case is the outer product of ``probs - onehot(argmax)`` and its vector: the gradient
    of the loss by the last layer's weights if the model's own answer were right. It is never formed:
    ``<a x h, b x k> = <a, b> <h, k>``.

    Args:
        probs: ``(cases, classes)``.
        vectors: ``(cases, units)``, what the last layer reads.
        count: Cases wanted.
        seed: Of the draws.

    Returns:
        ``(min(count, cases),)`` case numbers: the longest gradient first, then each drawn in proportion to
        the squared distance from its nearest predecessor; when no distance is left, in their order.
    """
    residual = np.array(probs, np.float32)
    residual[np.arange(len(residual)), residual.argmax(1)] -= 1
    vectors = np.ascontiguousarray(vectors, np.float32)
    squares = (residual ** 2).sum(1) * (vectors ** 2).sum(1)
    nearest, rng = squares.copy(), np.random.default_rng(seed)
    many = count > len(vectors) // 10 and len(vectors) <= ALL_PRODUCTS
    products = vectors @ vectors.T if many else None
    chosen: list[int] = []
    open_ = np.ones(len(squares), bool)
    for turn in range(min(count, len(squares))):
        total = nearest.sum(dtype=np.float64)
        if total <= 0:
            return np.array([*chosen, *np.flatnonzero(open_)][:count], np.int64)
        if turn == 0:
            winner = int(squares.argmax())
        else:
            edges = nearest.cumsum(dtype=np.float64)
            winner = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        chosen.append(winner)
        open_[winner] = False
        along = vectors @ vectors[winner] if products is None else products[winner]
        alike = (residual @ residual[winner]) * along
        distance = np.maximum(squares + squares[winner] - 2 * alike, 0)
        nearest = distance if turn == 0 else np.minimum(nearest, distance)
        nearest[~open_] = 0  # also against rounding: nothing is drawn twice
    return np.array(chosen, np.int64)


def coreset(vectors: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
    """Cases that leave no case far from a chosen or labelled one: k-centre greedy, Euclidean.

    Args:
        vectors: ``(cases, units)``.
        labelled: ``(labelled, units)``, may be empty; the first case is then the one nearest to the mean.
        count: Cases wanted.

    Returns:
        ``(min(count, cases),)`` case numbers, each the farthest from all before it.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    squares = (vectors ** 2).sum(1)

    def distance(centre: np.ndarray) -> np.ndarray:
        return np.maximum(squares + (centre ** 2).sum() - 2 * (vectors @ centre), 0)

    nearest = np.full(len(vectors), np.inf, np.float32)
    for start in range(0, len(labelled), _BLOCK):
        centres = np.asarray(labelled[start:start + _BLOCK], np.float32)
        apart = squares + (centres ** 2).sum(1)[:, None] - 2 * (centres @ vectors.T)
        nearest = np.minimum(nearest, np.maximum(apart.min(0), 0))
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        winner = int(nearest.argmax()) if np.isfinite(nearest.max()) else \
            int(distance(vectors.mean(0)).argmin())
        chosen.append(winner)
        nearest = np.minimum(nearest, distance(vectors[winner]))
        nearest[chosen] = -1
    return np.array(chosen, np.int64)


def typiclust(vectors: np.ndarray, labelled: np.ndarray, count: int, *, seed: int,
              clusters: int | None = None) -> np.ndarray:
    """The most typical case of every cluster that has no labelled case, the largest cluster first.

    Needs no model: the strategy for a cold start. A typical case is near to its `NEIGHBOURS` nearest of
    the same cluster.

    Args:
        vectors: ``(cases, units)``.
        labelled: ``(labelled, units)``, may be empty.
        count: Cases wanted.
        seed: Of k-means.
        clusters: How many; None for one a labelled and wanted case, `CLUSTERS` at most.

    Returns:
        ``(min(count, cases),)`` case numbers. Covered clusters follow, the least covered first; clusters
        of less than `SMALL_CLUSTER` cases (outliers) come last.
    """
    count = min(count, len(vectors))
    together = np.concatenate([np.asarray(labelled, np.float32).reshape(-1, vectors.shape[1]),
                               np.asarray(vectors, np.float32)])
    first = len(together) - len(vectors)
    wanted = min(clusters or first + count, CLUSTERS, len(together))
    kind = KMeans if len(together) < MANY else MiniBatchKMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # copies of one image leave clusters empty
        member = kind(wanted, n_init=1, random_state=seed).fit_predict(together)
    size, covered = np.bincount(member, minlength=wanted), np.bincount(member[:first], minlength=wanted)
    waiting = []
    for cluster in range(wanted):
        cases = np.flatnonzero(member == cluster)
        typical = typicality(together[cases])
        waiting.append([int(cases[place]) - first for place in np.argsort(-typical, kind="stable")
                        if cases[place] >= first])
    chosen: list[int] = []
    while len(chosen) < count:
        _, _, _, cluster = min((int(size[c]) < SMALL_CLUSTER, int(covered[c]), -int(size[c]), c)
                               for c in range(wanted) if waiting[c])
        chosen.append(waiting[cluster].pop(0))
        covered[cluster] += 1
    return np.array(chosen, np.int64)


def typicality(vectors: np.ndarray) -> np.ndarray:
    """Inverse mean distance ``(cases,)`` to the `NEIGHBOURS` nearest other cases; ``inf`` among copies."""
    if len(vectors) < 2:
        return np.ones(len(vectors))
    near = min(NEIGHBOURS, len(vectors) - 1)
    distance, _ = NearestNeighbors(n_neighbors=near).fit(vectors).kneighbors()
    with np.errstate(divide="ignore"):
        return 1 / distance.mean(1)


def _entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy over the last axis, nats."""
    return -(probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))).sum(-1)
