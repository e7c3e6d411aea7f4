"""Which label of a model is which of a dataset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbert.inputs.labels import matched

NAMES = st.lists(st.text("abcäß12 ", min_size=2).filter(lambda name: name.split() == [name]), min_size=2, unique=True)
SPELLINGS = (str, str.upper, str.title, "  {} ".format, "{}\n".format)


@given(NAMES, st.randoms(use_true_random=False))
def test_a_name_is_found_however_it_is_spelled_and_wherever_it_is(names: list[str], random: object) -> None:
    if len({name.casefold() for name in names}) == len(names):
        order = random.sample(range(len(names)), len(names))  # type: ignore[attr-defined]
        own = [random.choice(SPELLINGS)(names[label]) for label in order]  # type: ignore[attr-defined]
        assert matched(own, names) == tuple(order)


@pytest.mark.parametrize(
    ("own", "others", "order"),
    [
        (["very_good", "Not-Good"], ["not good", "very good"], (1, 0)),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], (0, 1)),
        (["bad", "good"], ["0", "1"], (0, 1)),
        (["LABEL_0", "LABEL_1"], ["1", "0"], (1, 0)),
        (["label 1", "label 0"], ["LABEL_0", "LABEL_1"], (1, 0)),
        (["Good", "good"], ["good", "Good"], (1, 0)),
        (["Good", "good"], ["GOOD", "good"], None),
        (["good", "bad"], ["gut", "schlecht"], None),
        (["good", "bad", "so so"], ["good", "bad", "neither"], None),
        (["good", "bad"], ["good", "bad", "neither"], None),
        (["LABEL_1", "LABEL_0"], ["bad", "good"], None),
    ],
)
def test_names_match_where_it_is_clear(own: list[str], others: list[str], order: tuple[int, ...] | None) -> None:
    assert matched(own, others) == order
