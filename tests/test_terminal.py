"""What is told while a person waits."""

import time

import pytest

from qbert.terminal import AT_ONCE_S, counted, progress


def test_where_no_bar_can_be_drawn_every_tenth_is_a_line_unless_all_is_done_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("counting", 50) as advance:
        advance(20)
        assert capsys.readouterr().err == ""
        time.sleep(AT_ONCE_S)
        for completed in (21, 22, 25):
            advance(completed)
        advance(50, "counted")
    assert capsys.readouterr().err.splitlines() == [
        "counting: 40 % after 2 s",
        "counting: 50 % after 2 s",
        "counted: 100 % after 2 s",
    ]


def test_what_has_no_end_has_no_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("counting") as advance:
        time.sleep(AT_ONCE_S)
        advance(1)
    assert capsys.readouterr().err == ""


def test_one_is_no_plural() -> None:
    assert [counted(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
