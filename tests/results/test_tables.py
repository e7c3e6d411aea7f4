"""What a person reads: it fits 80 columns, and nothing in a name can change it."""

import math
import re
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from qbert.results import columns, history, pace, run_tables, tables, verdicts


def benchmark(variant: str, median: float, **info: Any) -> dict[str, Any]:
    known = {
        "model": "bert-base",
        "max_length": 384,
        "variant": variant,
        "trained": True,
        "p95_s": median * 1.1,
        "identity": {},
    }
    return {"stats": {"median": median}, "extra_info": known | info}


SPEED = {"speedup": 10.444, "speedup_low": 10.01, "speedup_high": 10.99}
SPEED |= {"share_of_limit": 0.905, "share_of_best_limit": 0.805, "limit_definition": 2}
JUDGED = {
    "measured": "accuracy",
    "f1": 0.9512,
    "f1_baseline": 0.9492,
    "f1_drop": -0.002,
    "flips": 123,
    "documents": 495,
}
WEIGHED = {
    "measured": "footprint",
    "disk_bytes": 409_123_456,
    "load_s": 12.345,
    "first_call_s": 1.2345,
    "after_pause_s": 1.1111,
    "peak_rss_bytes": 2_345_678_901,
}


def of(precision: str) -> dict[str, Any]:
    return {"identity": {"definition": {"precision": precision}}}


def draw(drawn: Any) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(drawn)
    return console.export_text()


def summed(*rows: dict[str, Any]) -> str:
    return draw(run_tables.summary(history.cells(rows), title="[i]t", caption="c"))


def test_latency_and_accuracy_of_a_cell_are_one_row() -> None:
    table = history.cells(
        [
            benchmark("fp32", 1.0),
            benchmark("int8", 0.1, **SPEED),
            benchmark("int8", 9.9, **JUDGED),
            {"stats": {}},
        ]
    )
    assert list(table["variant"]) == ["fp32", "int8"]
    assert table.loc[1, ["median_s", "speedup", "score", "flips"]].tolist() == [0.1, 10.444, 0.9512, 123]
    assert math.isnan(table.loc[0, "score"])


def test_the_longest_variant_fits_80_columns() -> None:
    name = "int8-dynamic-per-channel"
    rows = [
        benchmark("fp32", 1.2345, speedup=1.0, **of("fp32")),
        benchmark("fp32-other", 0.6, speedup=2.0, **of("fp32")),
        benchmark(name, 0.118, **SPEED, **of("int8")),
        benchmark(name, 1.0, **JUDGED),
        benchmark(name, 1.0, **WEIGHED),
    ]
    text = summed(*rows)
    judged, weighed = [line for line in text.splitlines() if line.startswith(name)]
    assert judged.split() == [name, "118", "10.44", "10.01–10.99", "5.22", "90", "80", "-0.0020", "123"]
    assert weighed.split() == [name, "409", "12.35", "1234", "1111", "2346"]
    assert "bert-base, 384 tokens, fp32's F1 0.9492" in text
    assert max(map(len, text.split("\n"))) <= 80
    assert "…" not in text


def test_a_run_of_footprints_alone_has_their_table_alone() -> None:
    text = summed(benchmark("fp32", 1.0, **WEIGHED))
    assert "each in a process of its own" in text
    assert "speedup" not in text


def test_the_accuracy_table_fits_80_columns() -> None:
    judged = {
        "variant": "int8-dynamic-per-channel",
        "baseline": "fp32",
        "p50_s": 1.2345,
        "p95_s": 1.4,
        "mcnemar_p": 0.281,
    }
    interval = {"f1_drop_low": -0.0051, "f1_drop_high": 0.0123, "visible_drop": 0.012}
    text = draw(run_tables.accuracy([judged | interval | JUDGED], title="t"))
    (row,) = [line for line in text.splitlines() if line.startswith("int8")]
    assert row.split()[1:] == ["1234", "1400", "0.9512", "-0.0020", "-0.005", "+0.012", "123", "0.281"]
    assert max(map(len, text.splitlines())) <= 80


def test_untrained_models_are_marked() -> None:
    text = summed(benchmark("fp32", 1.0, trained=False))
    assert "bert-base, 384 tokens  untrained: latency only" in text


def test_markup_in_names_is_shown_as_it_is() -> None:
    text = summed(benchmark("[red]x[/red]", 1.0, model="[b]m"))
    assert all(name in text for name in ("[red]x[/red]", "[b]m", "[i]t"))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.4041, "1404"), (0.0504, "50.4"), (0.00123, "1.23"), (0.000012, "0.0120"), (0.0, "0"), (math.nan, "")],
)
def test_milliseconds_have_three_digits(seconds: float, shown: str) -> None:
    assert tables.milliseconds(seconds) == shown


@pytest.mark.parametrize(
    "module", ["results.page", "results.verdicts", "dataset", "cli", "cache", "machine", "roofline", "footprint"]
)
def test_reading_results_imports_no_torch(module: str) -> None:
    script = f"import sys, qbert.{module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def held(variant: str, verdict: str, **figures: Any) -> dict[str, Any]:
    place = {"model": "bert-base", "max_length": 384, "variant": variant, "verdict": verdict}
    return place | {"differs": [], "judged": {}} | figures


TIMED = {"base_s": 0.8, "head_s": 0.9, "change": 0.1251, "change_low": -0.1101, "change_high": 0.2999}


def test_verdicts_of_the_longest_names_fit_80_columns() -> None:
    judged = {"metric": "f1", "score_baseline": 0.95, "score": 0.94, "flips": 123, "drop_verdict": "worse"}
    sizes = {"base_disk_bytes": 409_123_456, "head_disk_bytes": 102_123_456}
    figures = {**TIMED, **sizes, "judged": judged}
    rows = [held("int8-dynamic-per-channel", "inconclusive", **figures), held("fp32", "same", **TIMED)]
    text = draw(verdicts.verdicts(rows, title=verdicts.answer(rows), caption="c"))
    assert max(map(len, text.splitlines())) <= 80
    assert "+12.5% -11.0% +30.0%" in text
    assert text.startswith("2 cells: 1 same, 1 inconclusive, 1 in F1 worse")
    assert "409.1" in text


def test_what_is_not_compared_says_why_and_markup_is_shown_as_it_is() -> None:
    rows = [
        held("[red]a[/red]", "not comparable", differs=["torch: 1, [b]2"]),
        held("b|<i>", "same", over=["disk 5 MB > 3 MB"]),
    ]
    text = draw(verdicts.verdicts(rows, title=verdicts.answer(rows), caption="c"))
    assert "bert-base-384-[red]a[/red]: torch: 1, [b]2" in text
    assert "disk 5 MB > 3 MB" in text
    markdown = verdicts.verdicts_markdown(rows, title="t", caption="c")
    assert "<i>" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {12}


def paced(variant: str, median: float, fp32: float | None, speedup: float, spread: float = 0.02) -> dict[str, Any]:
    """Give a cell that was timed while fp32 took `fp32` seconds."""
    interval = {"speedup_low": speedup * (1 - spread), "speedup_high": speedup * (1 + spread)}
    known = {} if variant == "fp32" else {"baseline_p50_s": fp32} | interval
    return benchmark(variant, median, speedup=speedup, **known, **of(variant.partition("-")[0]))


CONTRARY = [  # by medians fp32-a is slower than fp32 and has the higher speedup: the machine slowed down meanwhile
    paced("fp32", 0.100, None, 1.0),
    paced("fp32-a", 0.120, 0.150, 1.25),
    paced("fp32-b", 0.095, 0.100, 1.05),
    paced("int8-c", 0.050, 0.120, 2.40),
]


def test_the_figures_of_a_row_rank_alike() -> None:
    table = history.cells(CONTRARY)
    table = pace.at_one_pace(table, table).set_index("variant")
    assert table["latency_s"].sort_values().index.tolist() == ["int8-c", "fp32-a", "fp32-b", "fp32"]
    assert table.loc["fp32", "latency_s"] == pytest.approx(0.110)  # the median of 0.100, 0.150, 0.100, 0.120
    assert (table["latency_s"] * table["speedup"]).tolist() == pytest.approx([0.110] * 4)
    assert table["over_best"].tolist() == pytest.approx([0.8, 1.0, 0.84, 1.92])
    text = summed(*CONTRARY)
    assert [line.split()[1] for line in text.splitlines() if line.startswith(("fp32", "int8"))] == [
        *("110", "88.0", "105", "45.8"),
    ]


@pytest.mark.parametrize(
    ("share", "best", "shown"), [(0.31, 0.3, "31 30"), (0.01, 0.009, "1 <1"), (0.5, math.nan, "50"), (None, None, "")]
)
def test_both_shares_of_the_limit_are_percent(share: float | None, best: float | None, shown: str) -> None:
    assert columns.both_shares({"share_of_limit": share, "share_of_best_limit": best}) == shown


def test_a_share_of_the_limit_is_of_the_latency_beside_it() -> None:
    rows = [paced("fp32", 0.1, None, 1.0), paced("int8", 0.05, 0.2, 4.0)]
    rows[1]["extra_info"] |= {"share_of_limit": 0.5, "share_of_best_limit": 0.4}
    table = history.cells(rows)
    table = pace.at_one_pace(table, table)
    assert table["share_of_limit"][1] * table["latency_s"][1] == pytest.approx(0.025)
    assert table["share_of_best_limit"][1] * table["latency_s"][1] == pytest.approx(0.020)


def test_a_change_of_pace_is_said() -> None:
    text = summed(*CONTRARY)
    assert "The machine's pace changed by 50% among the cells of bert-base, 384 tokens." in " ".join(text.split())
    assert "fp32's median among the cells of a model and length, over the speedup" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    steady = [paced("fp32", 0.100, None, 1.0), paced("int8", 0.05, 0.109, 2.0)]
    assert "pace changed" not in summed(*steady)


def test_a_run_that_does_not_tell_the_pace_shows_its_medians() -> None:
    rows = [paced("fp32", 0.1, None, 1.0), paced("int8", 0.05, 0.2, 4.0), paced("bf16", 0.06, 0.1, 1.9)]
    del rows[2]["extra_info"]["baseline_p50_s"]
    table = history.cells(rows)
    assert pace.at_one_pace(table, table)["latency_s"].tolist() == [0.1, 0.05, 0.06]


def test_fp32_is_the_best_fp32_where_no_other_is_faster() -> None:
    table = history.cells([paced("fp32-slow", 0.2, 0.1, 0.5), paced("int8", 0.05, 0.1, 2.0)])
    assert pace.at_one_pace(table, table)["over_best"].tolist() == [0.5, 2.0]


def test_an_interval_too_wide_is_told_in_words() -> None:
    rows = [paced("int8", 0.05, 0.1, 2.0, spread=0.12), paced("bf16", 0.05, 0.1, 2.0, spread=0.10)]
    noisy, clear = [line for line in summed(*rows).splitlines() if line.startswith(("int8", "bf16"))]
    assert noisy.split()[2:5] == ["2.00", "too", "noisy"]
    assert clear.split()[2:4] == ["2.00", "1.80–2.20"]


def test_no_cell_of_a_spreadsheet_is_a_formula_or_a_control_code() -> None:
    texts = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "plain", "\x1b[2J\x9b\u202e"]
    table = pd.DataFrame({"text": texts, "number": [-1.5] * len(texts)})
    lines = tables.spreadsheet(table).splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == [
        *("'=1+1", "'+x", "'-x", "'@x", "'\tx", "'␍x", "plain", "␛[2J��"),
    ]
    assert {line.rpartition(",")[2] for line in lines} == {"-1.5"}


def test_markdown_shows_control_codes() -> None:
    assert tables.markdown_text("\x1b]0;x\x07\x9b\r\u202e") == "␛\\]0;x␇�␍�"


SERVED = {
    "measured": "capacity",
    "workers": 2,
    "worker_threads": 1,
    "texts_per_s": 1234.5,
    "loaded_p50_s": 1.2345,
    "loaded_p99_s": 9.8765,
    "loaded_over_alone": 1.023,
    "loaded_over_alone_low": 0.98,
    "loaded_over_alone_high": 1.06,
    "latency_limit_s": 0.05,
    "rate_within_limit": 1012.3,
    "pss_bytes": 12_345_678_901,
    "cost_per_million": 123.4,
    "traffic": "texts of news_mini",
    "traffic_tokens": {"p5": 7, "p50": 25, "p95": 51},
    "capacity_notes": ["2 workers on 1 processor: they share them."],
}


def test_what_a_machine_serves_fits_80_columns() -> None:
    name = "int8-dynamic-per-channel"
    rows = [benchmark(name, 1.0, **SERVED), benchmark("few", 1.0, **{**SERVED, "loaded_p99_s": math.nan})]
    rows.append(benchmark("noisy", 1.0, **{**SERVED, "loaded_over_alone_high": 1.9, "rate_within_limit": 0.0}))
    text = summed(*rows)
    line, few, noisy = (next(row for row in text.splitlines() if row.startswith(key)) for key in (name, "few", "noisy"))
    assert line.split() == [name, "1234", "1234", "9876", "1.02", "±5%", "1012", "12346", "123"]
    assert "~1012" in few.split()
    assert "too noisy" in noisy
    assert "none" in noisy.split()
    assert "bert-base, every core busy: texts of news_mini, median 25 tokens (90 %: 7–51)" in text
    assert " ".join(text.split()).count("they share them") == 1
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_without_a_price_there_is_no_cost() -> None:
    free = {name: value for name, value in SERVED.items() if name != "cost_per_million"}
    assert "costs" not in summed(benchmark("v", 1.0, **free))


def test_workers_and_threads_have_a_line_with_each_number() -> None:
    points = [{"workers": 1, "texts_per_s": 50.0}, {"workers": 4, "texts_per_s": 180.0}]
    rows = [benchmark("fp32", 1.0, **SERVED, scaling=points)]
    for threads, texts_per_s in ((1, 51.0), (2, 70.0)):
        name = f"fp32-{threads}-thread{'s' * (threads > 1)}"
        rows.append(benchmark(name, 1.0, **SERVED | {"worker_threads": threads, "texts_per_s": texts_per_s}))
    lines = [line.split() for line in summed(*rows).splitlines()]
    assert ["variant", "1", "4"] in lines
    assert ["fp32", "50.0", "180"] in lines
    assert ["variant", "1", "2"] in lines
    assert ["fp32", "51.0", "70.0"] in lines
