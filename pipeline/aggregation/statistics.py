"""What is noise: intervals over items and seeds, and paired tests between lines of a table.

Two things vary when a method is tried again: the items of the test and the seed of the run. Both are treated as drawn
from many (a two-way crossed design), so nothing here takes 500 items times 2 seeds for 1000 independent numbers.

* Intervals: percentile bootstrap that draws items with replacement and, apart from them, seeds. Of S seeds it draws
  S - 1, which makes the variance between seeds unbiased (McCarthy & Snowden 1985; S draws of 2 seeds show half of it).
  All lines see the same draws of items, so the interval of a difference is a paired one. Simulated coverage of 95 %
  intervals, 500 items: 96-100 % where seeds vary no more than items do; where they vary four times as much, 82 % with
  2 seeds, 91 % with 3, 94 % with 5 (tests/aggregation/test_statistics.py holds a part of this).
* Tests: t of the mean difference on the same items; its variance is (variance over items) / N + (variance over seeds)
  / S of each side, its degrees of freedom Welch and Satterthwaite's. Two seeds say nearly nothing about the spread of
  their own line, so that spread is taken as the larger of the line's own and the typical (median) one of the column:
  one unstable line widens itself and nobody else. With one seed everywhere it is exactly the paired t test.
* Many comparisons: Holm's step-down correction over all pairs of a column, so the best line may be picked afterwards.
"""

import numpy as np
from scipy import stats

from pipeline.core import seeds


def item_weights(items: int, draws: int, seed: int, name: str) -> np.ndarray:
    """Return (D, N) weights of a bootstrap over items; each row sums to 1."""
    rng = np.random.default_rng(seeds.number(seed, f"bootstrap items {name}"))
    drawn_DN = rng.integers(0, items, size=(draws, items)) + np.arange(draws)[:, None] * items
    return np.bincount(drawn_DN.ravel(), minlength=draws * items).reshape(draws, items) / items


def seed_weights(count: int, draws: int, seed: int) -> np.ndarray:
    """Return (D, S) weights of a bootstrap over S seeds, S - 1 drawn; one seed has nothing to draw from."""
    if count == 1:
        return np.ones((draws, 1))
    rng = np.random.default_rng(seeds.number(seed, "bootstrap seeds", count))
    drawn = rng.integers(0, count, size=(draws, count - 1))
    return (drawn[:, :, None] == np.arange(count)).mean(axis=1)


def bootstrap(scores_SN: np.ndarray, items_DN: np.ndarray, seeds_DS: np.ndarray) -> np.ndarray:
    """Return the (D,) means of `scores_SN` under each draw of items and seeds."""
    return ((items_DN @ scores_SN.T) * seeds_DS).sum(axis=1)


def interval(means_D: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of bootstrap means."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_D, [tail, 1 - tail])
    return float(low), float(high)


def pairwise(lines: list[np.ndarray]) -> np.ndarray:
    """Return the (K, K) p values of all pairs of lines on the same items, Holm-corrected over the pairs.

    Args:
        lines: K arrays (S, N); S may differ between them, the items may not.
    """
    count = len(lines)
    p_KK = np.ones((count, count))
    if count <= 1 or lines[0].shape[1] <= 1:  # nothing to compare with, or nothing to compare on
        return p_KK
    means_KN = np.stack([scores_SN.mean(axis=0) for scores_SN in lines])
    cov_KK = np.cov(means_KN)
    of_items_KK = np.diag(cov_KK)[:, None] + np.diag(cov_KK)[None, :] - 2 * cov_KK
    of_items_KK[of_items_KK < 1e-12 * np.diag(cov_KK).max()] = 0  # what rounding leaves of equal lines
    of_seeds_K, freedom = seed_noise(lines)
    i, j = np.triu_indices(count, k=1)
    mean_K, items = means_KN.mean(axis=1), means_KN.shape[1]
    p = _p_values(mean_K[i] - mean_K[j], of_items_KK[i, j] / items, items - 1, of_seeds_K[i] + of_seeds_K[j], freedom)
    p_KK[i, j] = p_KK[j, i] = holm(p)
    return p_KK


def shifts(differences: list[np.ndarray]) -> np.ndarray:
    """Return, for each of K lines, the p value of its mean difference being 0, Holm-corrected over the lines.

    Args:
        differences: K arrays (S, N), one run in two states, item by item.
    """
    if not differences or differences[0].shape[1] <= 1:
        return np.ones(len(differences))
    means_KN = np.stack([difference_SN.mean(axis=0) for difference_SN in differences])
    of_seeds_K, freedom = seed_noise(differences)
    items = means_KN.shape[1]
    return holm(_p_values(means_KN.mean(axis=1), means_KN.var(axis=1, ddof=1) / items, items - 1, of_seeds_K, freedom))


def seed_noise(lines: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the variance of each line's mean that is due to its seeds, (K,), and the degrees of freedom behind it.

    A line with one seed has the typical noise of the others; where every line has one seed, noise between seeds is
    unknown and 0 is returned.
    """
    counts_K = np.array([len(scores_SN) for scores_SN in lines])
    repeated = counts_K > 1
    if not repeated.any():
        return np.zeros(len(lines)), 1.0
    variance_K = np.zeros(len(lines))
    variance_K[repeated] = [scores_SN.mean(axis=1).var(ddof=1) for scores_SN in lines if len(scores_SN) > 1]
    freedom_K = counts_K[repeated] - 1.0
    typical = np.median(variance_K[repeated] * freedom_K / stats.chi2.median(freedom_K))
    return np.maximum(variance_K, typical) / counts_K, float(freedom_K.sum())


def holm(p_P: np.ndarray) -> np.ndarray:
    """Return Holm's (1979) step-down corrected p values, in the order given."""
    order = np.argsort(p_P, kind="stable")
    corrected = np.maximum.accumulate(p_P[order] * np.arange(len(p_P), 0, -1))
    found = np.empty_like(p_P)
    found[order] = np.minimum(corrected, 1)
    return found


def _p_values(
    difference: np.ndarray, of_items: np.ndarray, items_freedom: int, of_seeds: np.ndarray, seeds_freedom: float
) -> np.ndarray:
    """Return two-sided p of Welch's t for a difference whose variance has a part of items and a part of seeds."""
    variance = of_items + of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (of_items**2 / items_freedom + of_seeds**2 / seeds_freedom)
        p = 2 * stats.t.sf(np.abs(difference) / np.sqrt(variance), freedom)
    return np.where(variance > 0, p, np.where(difference == 0, 1.0, 0.0))
