"""What the verdicts of histories and of saved runs claim, by seeded simulation: false alarms and what they find."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from qbert.results import changes, compare, history

Values = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]
STEP = math.log(1.05)
IDENTITY = {"processor": "P", "instruction_sets": [], "hardware": {}, "dataset_sha256": "d"}


def modes(apart: float) -> Draw:
    return lambda generator, count: apart * generator.integers(0, 2, count) + generator.normal(0, 0.004, count)


def in_twos(rate: float, slower: float) -> Draw:
    """Return noise of 1 % with two bad runs in a row now and then, two good ones at least between them."""

    def draw(generator: np.random.Generator, count: int) -> Values:
        values, place = generator.normal(0, 0.01, count), 0
        while place < count:
            bad = generator.random() < rate
            values[place : place + 2] += slower * bad
            place += 4 if bad else 1
        return values

    return draw


NOISE: dict[str, Draw] = {
    "normal, 2 %": lambda generator, count: generator.normal(0, 0.02, count),
    "heavy tails (t, 3 degrees)": lambda generator, count: 0.02 * generator.standard_t(3, count),
    "two modes 2 % apart": modes(0.02),
    "two modes 5 % apart": modes(0.05),
    "one in 20 followed by a second, 5 % slower": in_twos(0.05, 0.05),
    "one in 10 followed by a second, 10 % slower": in_twos(0.10, 0.10),
    "random walk, 0.2 % a day": lambda generator, count: (
        generator.normal(0, 0.002, count).cumsum() + generator.normal(0, 0.01, count)
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("noise", "runs"),
    # A random walk of more days is no constant series.
    [(noise, runs) for noise in NOISE for runs in (8, 10, 20, 40, 100) if "walk" not in noise or runs <= 20],
)
def test_constant_series_have_no_change(noise: str, runs: int) -> None:
    generator, series = np.random.default_rng(1), 1000 if runs < 100 else 400
    found = np.mean([bool(changes.change_points(np.exp(NOISE[noise](generator, runs)))) for _ in range(series)])
    print(f"{noise}, {runs} runs: {found:.1%} of {series}")
    assert found <= 0.03 + 2 * math.sqrt(0.03 * 0.97 / series)  # 3 %, and what chance adds


def saved(logs: Values, when: pd.DatetimeIndex, *, model: str = "m", boot: str = "") -> pd.DataFrame:
    """Return one cell of saved runs as history.load gives it."""
    cell = {"model": model, "max_length": 128, "variant": "v", "identity": IDENTITY, "machine": "P", "dataset": "d"}
    columns = {"median_s": np.exp(logs), "when": when, "host": "h", "boot": boot, "commit": "c" * 12}
    return pd.DataFrame({name: [value] * len(logs) for name, value in cell.items()} | columns)


def sat(tables: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    return table.assign(session=history.sessions(table))


def dates(days: int, a_day: int, first: str = "2026-01-01T09:00") -> pd.DatetimeIndex:
    starts = [
        pd.Timestamp(first, tz="UTC") + pd.Timedelta(days=day, hours=run) for day in range(days) for run in range(a_day)
    ]
    return pd.DatetimeIndex(starts)


@pytest.mark.exhaustive
@pytest.mark.parametrize("a_day", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_days_that_differ_are_no_change(spread: float, a_day: int) -> None:
    generator, series, days = np.random.default_rng(2), 300, 15
    found = 0
    for _ in range(series):
        logs = np.repeat(generator.normal(0, spread, days), a_day) + generator.normal(0, 0.01, days * a_day)
        (row,) = changes.changes(sat([saved(logs, dates(days, a_day))]))
        found += bool(row["changes"])
    print(f"{days} days that differ by {spread:.0%}, {a_day} runs in each: {found / series:.1%} of {series}")
    assert found / series <= 0.03 + 2 * math.sqrt(0.03 * 0.97 / series)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("after", "least"), [(3, 0.71), (5, 0.83), (10, 0.99)])
def test_a_step_is_found_soon(after: int, least: float) -> None:
    generator, series = np.random.default_rng(3), 2000
    steps = STEP * (np.arange(20 + after) >= 20)
    found = [changes.change_points(np.exp(steps + generator.normal(0, 0.02, len(steps)))) for _ in range(series)]
    share = np.mean([bool(points) for points in found])
    near = np.mean([any(abs(point - 20) <= 2 for point in points) for points in found])
    print(f"5 % at a spread of 2 %, {after} runs later: {share:.1%} of {series}, {near:.1%} within two runs of it")
    assert share >= least - 2 * math.sqrt(least * (1 - least) / series)
    assert near >= share - 0.05


@pytest.mark.exhaustive
def test_a_level_and_its_end_are_found() -> None:
    generator, series = np.random.default_rng(4), 400
    level = np.repeat([0, 0.06, 0], 10)
    found = [changes.change_points(np.exp(level + generator.normal(0, 0.015, 30))) for _ in range(series)]
    share = np.mean([len(one) == 2 and abs(one[0] - 10) <= 1 and abs(one[1] - 20) <= 1 for one in found])
    print(f"6 % for ten runs at a spread of 1.5 %: {share:.1%} of {series}")
    assert share >= 0.95


CELLS = [f"m{number}" for number in range(12)]


def alarms(
    days: float, *, runs: int = 1, sessions: int = 1, known: int = 0, comparisons: int = 100
) -> dict[str, float]:
    """Return the share of comparisons of the same code in which any of 12 cells gets each verdict.

    Sessions differ by `days`, runs by 1 %; `known` sessions are in the history, the compared ones come after them.
    """
    generator = np.random.default_rng(5)
    counts = dict.fromkeys(("alarm", "same", "inconclusive"), 0)

    def drawn(count: int, a_day: int, first: str) -> pd.DataFrame:
        return sat(
            [
                saved(
                    np.repeat(generator.normal(0, days, count), a_day) + generator.normal(0, 0.01, count * a_day),
                    dates(count, a_day, first),
                    model=model,
                )
                for model in CELLS
            ]
        )

    for _ in range(comparisons):
        base, head = (drawn(sessions, runs, first) for first in ("2026-05-01T09:00", "2026-06-01T09:00"))
        spreads = changes.spreads(drawn(known, 1, "2026-01-01T09:00"), pd.concat([base, head])) if known else {}
        verdicts = {row["verdict"] for row in compare.runs(base, head, spreads=spreads)}
        counts["alarm"] += bool(verdicts & {"slower", "faster"})
        for name in ("same", "inconclusive"):
            counts[name] += name in verdicts
    return {name: count / comparisons for name, count in counts.items()}


@pytest.mark.parametrize("runs", [1, 5])
@pytest.mark.parametrize("days", [0.02, 0.03, 0.05])
def test_one_session_a_side_is_inconclusive_without_a_history(days: float, runs: int) -> None:
    found = alarms(days, runs=runs, comparisons=5)
    assert found == {"alarm": 0, "same": 0, "inconclusive": 1}


@pytest.mark.exhaustive
@pytest.mark.parametrize("known", [4, 10, 30])
@pytest.mark.parametrize("days", [0.02, 0.03, 0.05])
def test_with_a_history_the_same_code_is_seldom_slower_or_faster(days: float, known: int) -> None:
    for runs in (1, 5) if days == 0.02 else (1,):
        found = alarms(days, runs=runs, known=known)
        print(f"days differ by {days:.0%}, {runs} runs a side, history of {known} sessions: {found}")
        assert found["alarm"] <= 0.07


@pytest.mark.exhaustive
@pytest.mark.parametrize("sessions", [2, 4])
@pytest.mark.parametrize("days", [0.02, 0.05])
def test_several_sessions_of_the_same_code_are_seldom_slower_or_faster(days: float, sessions: int) -> None:
    found = alarms(days, runs=3, sessions=sessions)
    print(f"days differ by {days:.0%}, {sessions} sessions a side, three runs each: {found}")
    assert found["alarm"] <= 0.07


@pytest.mark.exhaustive
def test_a_history_lets_a_slowdown_be_found() -> None:
    generator = np.random.default_rng(6)
    past = saved(generator.normal(0, 0.01, 20), dates(20, 1))
    found = []
    for _ in range(200):
        base, head = (
            sat([saved(level + generator.normal(0, 0.01, 1), dates(1, 1, first))])
            for level, first in ((0, "2026-05-01T09:00"), (math.log(1.10), "2026-05-02T09:00"))
        )
        (row,) = compare.runs(base, head, spreads=changes.spreads(past, pd.concat([base, head])))
        found.append(row["verdict"])
    print(f"10 %, one session a side, days differ by 1 %, history of 20: {found.count('slower') / 200:.1%} of 200")
    assert found.count("slower") / 200 >= 0.95
