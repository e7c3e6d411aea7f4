"""What is told while a person waits."""

import os
import time

import pytest
from hypothesis import given
from hypothesis.strategies import binary

from qbert.system.errors import sentence
from qbert.system.terminal import AT_ONCE_S, counted, progress, shown


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
    lines = [line.split(" after ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["counting: 40 %", "counting: 50 %", "counted: 100 %"]


def test_what_has_no_end_has_no_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("counting") as advance:
        time.sleep(AT_ONCE_S)
        advance(1)
    assert capsys.readouterr().err == ""


@given(binary())
def test_a_name_of_any_bytes_can_be_printed(name: bytes) -> None:
    shown(os.fsdecode(name)).encode()


def test_bytes_of_a_name_that_are_no_utf8_are_seen() -> None:
    assert shown(os.fsdecode(b"caf\xe9 \xff")) == r"caf\xe9 \xff"


def test_a_name_that_a_file_cannot_hold_is_told() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        os.fsdecode(b"caf\xe9").encode()
    assert "'caf\\udce9' has bytes that are no UTF-8" in sentence(caught.value)


def test_one_is_no_plural() -> None:
    assert [counted(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
