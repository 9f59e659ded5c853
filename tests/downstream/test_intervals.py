from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from downstream.intervals import Sampling, Units, compare, holm, interval, over_seeds


def units_of(n: int, n_strata: int = 1) -> Units:
    names = [f"u{i}" for i in range(n)]
    return Units.of([names[i::n_strata] for i in range(n_strata)])


def simulated(rng: np.random.Generator, n: int) -> np.ndarray:
    """Hits, reference and estimated events (units, 3): skewed, and units differ in difficulty."""
    ref = rng.poisson(np.exp(rng.normal(1.5, 0.8, n)))
    hits = rng.binomial(ref, 1 / (1 + np.exp(-rng.normal(0.4, 1, n))))
    return np.stack((hits, ref, hits + rng.poisson(1.5, n)), axis=1)


def f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[..., 0] / (counts[..., 1] + counts[..., 2])


def coverage(n: int, n_strata: int, n_experiments: int) -> float:
    rng = np.random.default_rng(n)
    truth = f1(simulated(rng, 2_000_000).sum(axis=0))
    units = units_of(n, n_strata)
    held = 0
    for _ in range(n_experiments):
        counts = simulated(rng, n)
        draws = f1(units.weights(1000, rng) @ counts)
        low, high = interval(float(f1(counts.sum(axis=0))), draws, units.sampling)
        held += low <= truth <= high
    return held / n_experiments


@pytest.mark.parametrize("n", [20, 100])
def test_intervals_hold_the_truth_in_about_95_per_cent(n: int) -> None:
    # Three standard errors of 250 experiments are 4 %.
    assert coverage(n, 1, 250) == pytest.approx(0.945, abs=0.045)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "n_strata"), [(20, 1), (20, 5), (50, 5), (100, 1)])
def test_intervals_hold_the_truth_closely(n: int, n_strata: int) -> None:
    # Three standard errors of 1200 experiments are 2 %.
    assert coverage(n, n_strata, 1200) == pytest.approx(0.942, abs=0.022)


def test_resampling_keeps_the_number_of_units_in_each_stratum() -> None:
    units = Units.of([["a", "a", "b", "c"], ["d", "e"], ["f"]])
    assert units.names == tuple("abcdef")
    assert [one.tolist() for one in units.members] == [[0, 0, 1, 2], [3, 4], [5]]
    weights = units.weights(500, np.random.default_rng(0))
    assert weights.shape == (500, 6)
    assert (weights[:, :3].sum(axis=1) == 3).all() and (weights[:, 3:5].sum(axis=1) == 2).all()
    assert (weights[:, 5] == 1).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    assert weights[:, 0].var() == pytest.approx(3 * (1 / 3) * (2 / 3), rel=0.25)
    sampling = units.sampling
    assert (sampling.n_units, sampling.n_strata, sampling.n_smallest) == (6, 3, 1)


def test_a_unit_in_two_rotations_is_drawn_once_for_both() -> None:
    units = Units.of([["a", "b", "c"], ["c", "b", "a"], ["d", "e"]])
    assert units.sampling.n_strata == 2
    weights = units.weights(3, np.random.default_rng(0))
    first, second = (weights[:, one] for one in units.members[:2])
    assert np.array_equal(first, second[:, ::-1])


def test_draws_depend_on_the_units_alone() -> None:
    one, same, other = units_of(12), units_of(12), units_of(12, 3)
    assert one.sampling == same.sampling != other.sampling
    draws = [units.generator().integers(1 << 30) for units in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]


ENOUGH = Sampling(20, 1, 20, "")


@pytest.mark.parametrize(
    ("sampling", "draws", "value"),
    [
        (Sampling(9, 1, 9, ""), np.arange(100.0), 50.0),
        (Sampling(20, 10, 1, ""), np.arange(100.0), 50.0),
        (ENOUGH, np.zeros(0), 50.0),
        (ENOUGH, np.arange(100.0), np.nan),
        (ENOUGH, np.append(np.arange(94.0), [np.nan] * 6), 50.0),
    ],
)
def test_no_interval_where_there_is_nothing_to_tell(
    sampling: Sampling, draws: np.ndarray, value: float
) -> None:
    assert interval(value, draws, sampling) is None
    comparison = compare(value, draws, 1.0, np.ones(len(draws)), sampling)
    assert comparison.interval is None and comparison.p is None


def test_ten_units_and_some_unknown_draws_suffice() -> None:
    draws = np.append(np.random.default_rng(0).normal(size=990), [np.nan] * 10)
    assert interval(0.0, draws, Sampling(10, 1, 10, "")) is not None


def test_the_interval_is_the_widened_percentile_one() -> None:
    draws = stats.norm.ppf((np.arange(20000) + 0.5) / 20000)  # no bias, deviation 1
    low, high = interval(0.0, draws, ENOUGH)
    wanted = stats.t.ppf(0.975, 19) * np.sqrt(20 / 19)
    assert (low, high) == (pytest.approx(-wanted, abs=0.02), pytest.approx(wanted, abs=0.02))
    shifted = interval(0.0, draws - 0.5, ENOUGH)  # draws 0.5 too low: corrected upwards
    assert shifted == (pytest.approx(0.5 - wanted, abs=0.02), pytest.approx(0.5 + wanted, abs=0.02))


def test_a_value_that_never_changes_has_an_interval_of_itself() -> None:
    assert interval(0.0, np.zeros(100), ENOUGH) == (0.0, 0.0)
    assert compare(0.0, np.zeros(100), 0.0, np.zeros(100), ENOUGH).p == 1.0


def test_seeds_are_resampled_as_well() -> None:
    rng = np.random.default_rng(0)
    seeds, units = rng.normal(0, 1, (3, 1)), rng.normal(0, 0.4, 20000)
    draws = over_seeds(seeds + units, rng)
    wanted = 0.4**2 + seeds.var(ddof=1) / 3
    assert draws.var() == pytest.approx(wanted, rel=0.05)
    assert draws.mean() == pytest.approx(seeds.mean(), abs=0.02)
    assert np.array_equal(over_seeds(units[None], rng), units)


def test_a_comparison_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.2, 1000)  # draws of hard units are hard for both
    one, other = 0.5 + hard, 0.45 + hard + rng.normal(0, 0.01, 1000)
    found = compare(0.5, one, 0.45, other, ENOUGH)
    assert found.difference == pytest.approx(0.05)
    assert 0.02 < found.interval[0] < found.interval[1] < 0.08
    assert found.p < 1e-3
    back = compare(0.45, other, 0.5, one, ENOUGH)
    assert back.p == pytest.approx(found.p)
    assert back.interval == (pytest.approx(-found.interval[1]), pytest.approx(-found.interval[0]))


@given(st.floats(-4, 4), st.floats(-0.3, 0.3), st.integers(0, 5))
def test_p_is_below_5_per_cent_where_the_interval_leaves_out_0(
    value: float, bias: float, seed: int
) -> None:
    draws = value + bias + np.random.default_rng(seed).normal(size=4000)
    found = compare(value, draws, 0.0, np.zeros(4000), ENOUGH)
    if not 0.045 < found.p < 0.055:  # quantiles are interpolated
        low, high = found.interval
        assert (found.p < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize(
    ("n_draws", "bias"),
    [(200, -0.4), (200, -0.2), (200, 0.2), (1000, -0.4), (1000, 0.2), (1000, 0.4)],
)
def test_p_knows_of_the_bias_where_few_draws_lie_beyond_0(n_draws: int, bias: float) -> None:
    noise = stats.norm.ppf((np.arange(n_draws) + 0.5) / n_draws)
    for value in np.arange(1.5, 4, 0.05):
        found = compare(value, value + bias + noise, 0.0, np.zeros(n_draws), ENOUGH)
        if not 0.03 < found.p < 0.07:  # quantiles are interpolated, the last ones coarsely
            assert (found.p < 0.05) == (found.interval[0] > 0)


def test_draws_in_float32_are_equal_to_values_in_float64() -> None:
    units = units_of(12)
    found = np.arange(12) < 7
    draws = units.weights(1000, units.generator()) @ found / 12
    stored = draws.astype(np.float32).astype(np.float64)
    assert (draws == 7 / 12).mean() > 0.2 and not (stored == 7 / 12).any()
    within = interval(7 / 12, stored, units.sampling)
    assert within == pytest.approx(interval(7 / 12, draws, units.sampling), abs=1e-6)
    less = (0.1 + 0.2, 0.3)  # equal but for rounding
    constant = np.full(1000, np.float32(0.3), np.float64)
    assert compare(less[0], constant, less[1], constant, ENOUGH).p == 1.0


def test_p_goes_on_falling_where_no_draw_lies_beyond_0() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    p = [compare(x, x + noise, 0.0, np.zeros(1000), ENOUGH).p for x in (1.5, 2.2, 2.6, 4, 6, 9)]
    assert p == sorted(p, reverse=True) and p[-1] < 1e-6
    assert compare(1.0, np.ones(50), 0.0, np.zeros(50), ENOUGH).p == 0.0


def rejected(n: int, n_experiments: int, gain: float) -> float:
    """How often two systems of equal quality (but for a gain) differ at the 5 % level."""
    rng = np.random.default_rng(n)
    units = units_of(n)
    count = 0
    for _ in range(n_experiments):
        hard = rng.normal(0, 1, n)
        one, other = (hard + rng.gamma(2.0, 0.5, n) for _ in range(2))
        weights = units.weights(600, rng) / n
        one += gain
        found = compare(one.mean(), weights @ one, other.mean(), weights @ other, units.sampling)
        count += found.p < 0.05
    return count / n_experiments


def test_equal_systems_differ_in_about_5_per_cent() -> None:
    assert rejected(20, 500, 0.0) == pytest.approx(0.05, abs=0.03)
    assert rejected(20, 100, 1.5) > 0.95


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert len(corrected) == len(p_values)
    for i, p in enumerate(corrected):
        others = [q for j, q in enumerate(p_values) if j != i]
        subsets = [
            (p_values[i], *sorted(others)[j:]) for j in range(len(others) + 1)
        ]  # the worst subset of each size has the largest others
        assert p == pytest.approx(max(min(1.0, min(s) * len(s)) for s in subsets))


def test_holm_by_hand() -> None:
    assert holm([]) == [] and holm([0.2]) == [0.2]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for order in permutations(range(3)):
        p = [0.5, 0.01, 0.3]
        assert [holm(p)[i] for i in order] == holm([p[i] for i in order])
