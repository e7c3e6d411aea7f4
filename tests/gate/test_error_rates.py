"""By simulation: how often the gate's verdicts, its F1 verdicts and the F1 guard are wrong, and what they find.

`pytest tests/test_statistics_gate.py -s` prints the figures of docs/statistics.md.
"""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from qbert.gate import run
from qbert.measure import accuracy, stats

Noise = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]]
SPREAD = 0.01
"""Of the log ratio of a pair of processes."""


def modes(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Each process is in one of two modes 2 % apart."""
    apart = rng.integers(0, 2, shape) - rng.integers(0, 2, shape)
    return 0.02 * apart + 0.005 * rng.standard_normal(shape)


def bursts(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """In one of ten pairs a burst hits one side by up to 20 %."""
    hit = (rng.random(shape) < 0.1) * rng.uniform(-0.2, 0.2, shape)
    return SPREAD * rng.standard_normal(shape) + hit


def periodic(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Every second pair slows the side that is started first by 3 %; which that is is drawn within every two pairs."""
    first = rng.choice([-1, 1], (*shape[:-1], shape[-1] // 2 + 1))
    order = np.stack([first, -first], axis=-1).reshape(*shape[:-1], -1)[..., : shape[-1]]
    return SPREAD * rng.standard_normal(shape) + 0.03 * order * (np.arange(shape[-1]) % 2)


NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: SPREAD * rng.standard_normal(shape),
    "twice as wide": lambda rng, shape: 2 * SPREAD * rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: SPREAD * rng.standard_t(3, shape) / math.sqrt(3),
    "two modes": modes,
    "bursts": bursts,
    "every second pair": periodic,
}


def decided(log_ratios: npt.NDArray[np.float64]) -> list[run.Cell]:
    """Return the cells of a gate whose pairs have `log_ratios`, `(cells, pairs)`, as it decides them."""
    cells = [run.Cell("m", number, "v", "m", stats.MIN_EFFECT) for number in range(len(log_ratios))]
    left = cells
    for pair in range(log_ratios.shape[1]):
        for cell in left:
            cell.log_ratios.append(float(log_ratios[cell.max_length, pair]))
        run.judge(left, log_ratios.shape[1])
        left = [cell for cell in left if cell.verdict == "inconclusive"]
    return cells


def simulated(truths: list[float], noise: Noise, gates: int, pairs: int = 40) -> list[list[run.Cell]]:
    rng = np.random.default_rng(14)
    truth = np.log1p(truths)[:, None]
    return [decided(truth + noise(rng, (len(truths), pairs))) for _ in range(gates)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("noise", NOISES)
def test_verdicts_of_a_gate_hold_together_with_95_percent(noise: str) -> None:
    """The worst case: each truth lies on the bound, so that every sure verdict is wrong."""
    gates = 300
    on_bound = simulated([stats.MIN_EFFECT] * 12, NOISES[noise], gates)
    wrong = sum(any(cell.verdict != "inconclusive" for cell in cells) for cells in on_bound)
    print(f"\n12 cells on the bound, {noise}: a wrong verdict in {wrong / gates:.1%} of gates")
    assert wrong / gates <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / gates)


@pytest.mark.exhaustive
def test_cells_that_are_decided_leave_their_error_to_the_rest() -> None:
    """Half of the cells are the same, so that the others, on the bound, are looked at with more of the error."""
    gates = 300
    found = simulated([0.0] * 6 + [stats.MIN_EFFECT] * 6, NOISES["normal"], gates)
    wrong = sum(any(cell.verdict != "inconclusive" for cell in cells[6:]) for cells in found)
    print(f"\n6 of 12 cells on the bound, 6 the same: a wrong verdict in {wrong / gates:.1%} of gates")
    assert wrong / gates <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / gates)


@pytest.mark.exhaustive
@pytest.mark.parametrize("noise", NOISES)
def test_identical_code_is_never_slower_and_five_percent_are_found(noise: str) -> None:
    gates = 60
    found = simulated([0.0] * 11 + [0.05], NOISES[noise], gates)
    same = Counter(cell.verdict for cells in found for cell in cells[:-1])
    slower = sum(cells[-1].verdict == "slower" for cells in found)
    pairs = np.median([max(len(cell.log_ratios) for cell in cells) for cells in found])
    print(f"\n{noise}: same code {dict(same)}; 5 % found in {slower / gates:.0%}; {pairs:.0f} pairs to the last cell")
    assert not same["slower"] + same["faster"]
    assert slower / gates >= 0.9


def test_the_levels_are_those_of_the_published_simulation() -> None:
    levels = [1 - stats.over_looks(stats.bonferroni(0.95, cells), 40) for cells in (1, 8, 12, 24, 60)]
    assert levels == pytest.approx([0.0087, 0.00098, 0.00064, 0.00031, 0.00012], rel=0.04)
    assert stats.over_looks(0.95, 1) == pytest.approx(0.95), "one look needs no correction"
    assert stats.over_looks(1 - 1e-9, 40) == pytest.approx(1 - 1e-9 / 40), "beyond what was simulated: Bonferroni"


def test_p_values_exclude_what_the_interval_excludes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = 0.01 * rng.standard_normal(15) + rng.uniform(-0.02, 0.02)
        confidence = rng.uniform(0.8, 0.999)
        _, low, high = stats.signed_rank_interval(values, confidence)
        p = stats.p_values(values)[-1]
        assert (low > 0 or high < 0) == (abs(p) <= 1 - confidence)
        assert (p > 0) == (values.mean() > 0) or abs(p) > 0.5
        told = stats.verdicts(values, confidence, 0.01)[-1]
        assert told == stats.verdict(low, high, 0.01)


def answers(rng: np.random.Generator, documents: int, flips: float, drop: float) -> tuple[npt.NDArray[np.bool_], ...]:
    """Return labels, and what base and head predict, of documents of two topics: 9 of 10 right before."""
    labels = rng.integers(0, 2, documents)
    base = np.where(rng.random(documents) < 0.9, labels, 1 - labels)
    right = base == labels
    lost, gained = (flips + drop) / 2 / 0.9, (flips - drop) / 2 / 0.1
    head = np.where(rng.random(documents) < np.where(right, lost, gained), 1 - base, base)
    return tuple(np.eye(2, dtype=bool)[ids] for ids in (labels, base, head))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("documents", "flips", "drop", "never", "least"),
    [
        (500, 0.02, 0.0, {"worse", "better"}, {}),
        (500, 0.02, 0.01, {"same"}, {}),
        (50, 0.1, 0.08, {"same"}, {}),
        (20_000, 0.005, 0.0007, {"worse", "better"}, {"same": 0.99}),
        (20_000, 0.05, 0.02, {"same", "better"}, {"worse": 0.99}),
    ],
)
def test_an_f1_verdict_is_rarely_wrong(
    documents: int, flips: float, drop: float, never: set[str], least: dict[str, float]
) -> None:
    rng, trials = np.random.default_rng(3), 200
    found = Counter()
    for _ in range(trials):
        compared = accuracy.compare(*answers(rng, documents, flips, drop))
        found[stats.drop_verdict(compared.drop_low, compared.drop_high, stats.MIN_DROP)] += 1
    print(f"\n{documents} documents, {flips:.1%} flip, true drop {drop:.2%}: {dict(found)}")
    assert sum(found[verdict] for verdict in never) / trials <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / trials)
    for verdict, share in least.items():
        assert found[verdict] / trials >= share


@pytest.mark.exhaustive
@pytest.mark.parametrize(("documents", "flips"), [(500, 20), (500, 5), (872, 30), (5000, 50)])
def test_the_visible_drop_is_seen_in_four_of_five(documents: int, flips: int) -> None:
    from scipy import stats

    rng, trials = np.random.default_rng(1), 2000
    drop = accuracy.visible_drop(documents, flips)
    share = max((flips + 1) / (documents + 2), drop)
    lost, gained, _ = rng.multinomial(documents, [(share + drop) / 2, (share - drop) / 2, 1 - share], size=trials).T
    p = [
        stats.binomtest(int(one), int(one + other)).pvalue if one + other else 1.0
        for one, other in zip(lost, gained, strict=True)
    ]
    seen = float(np.mean((np.array(p) < 0.05) & (lost > gained)))
    print(f"\n{documents} documents, {flips} flip: a drop of {drop:.4f} is seen in {seen:.0%}")
    assert seen == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("drop", "expected"), [(0.0, 0.11), (0.02, 0.85)])
def test_the_guard_s_odds_are_those_of_a_simulation(drop: float, expected: float) -> None:
    rng = np.random.default_rng(2)
    share = 21 / 502
    lost, gained, _ = rng.multinomial(500, [(share + drop) / 2, (share - drop) / 2, 1 - share], size=100_000).T
    told = accuracy.guard_fails(500, 20, 0.01, drop)
    assert told == pytest.approx(float((lost - gained > 0.01 * 500).mean()), abs=0.005)
    assert told == pytest.approx(expected, abs=0.02)


def test_too_few_documents_see_no_drop() -> None:
    assert accuracy.visible_drop(5, 0) == 1
    assert accuracy.visible_drop(5, 5) == 1
    assert 0 < accuracy.visible_drop(100_000, 0) < 1e-3
