"""The report: what it says, what it escapes, and how it looks in a real browser."""

import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from made_up import LENGTHS, VARIANTS, benchmark, capacity, cell, run, served, whole
from rich.console import Console

from qbert.cli import main
from qbert.measure import accuracy
from qbert.results import columns, history, machines, page, run_tables, summary
from qbert.system.errors import InputError

MARKUP = "<script>document.title='run'</script><img src=x onerror=alert(1)> $x_1$ | * & \"quoted\""


Load = Callable[..., pd.DataFrame]


def markdown(runs: pd.DataFrame) -> str:
    return page.markdown(machines.split(runs))


def html_of(runs: pd.DataFrame) -> str:
    return page.render(machines.split(runs))


def answers(runs: pd.DataFrame) -> list[str]:
    return summary.answers(summary.summarize(runs))


def of_measured(content: dict[str, Any], measured: str, *variants: str) -> Iterator[dict[str, Any]]:
    """Yield the `extra_info` of the benchmarks of this kind, of `variants` alone if some are given."""
    for one in content["benchmarks"]:
        info = one["extra_info"]
        if info["measured"] == measured and (not variants or info["variant"] in variants):
            yield info


def test_the_answer_comes_first_and_is_a_sentence(load: Load) -> None:
    html = html_of(load(whole()))
    answer = (
        "served, 384 tokens: int8-openvino is 7.14 times faster than fp32 (6.93 to 7.29), 3.57 times faster than the "
        "best fp32; weighted F1 0.9460, 0.0040 lower (95 %: 0.0020 higher to 0.0100 lower), 1 of 500 labels changed."
    )
    assert answer in html
    assert "the model is untrained, so F1 means nothing." in html
    assert html.index(answer) < html.index("<h2>")


def test_a_variant_over_its_limit_is_not_the_answer(load: Load) -> None:
    content = whole()
    for info in of_measured(content, "accuracy", "int8-openvino"):
        info |= {"f1_drop": 0.02, "f1": 0.93}
    runs = load(content)
    assert "bf16 is 2.50 times faster" in answers(runs)[0]
    assert "over the limit" in markdown(runs)


def judged_by(guard: str, drop: float, high: float, variant: str = "int8-openvino") -> dict[str, Any]:
    """Give a run whose `variant` has this F1 drop; int8-openvino is the fastest, and serves most."""
    content = run(*(one for name in VARIANTS for one in cell("served", 384, name)), *served(*VARIANTS))
    for info in of_measured(content, "accuracy"):
        info["f1_guard"] = guard
    for info in of_measured(content, "accuracy", variant):
        info |= {"f1_drop": drop, "f1": info["f1_baseline"] - drop, "f1_drop_high": high, "f1_drop_low": drop - 0.01}
    return content


def test_an_interval_over_the_limit_is_over_it_in_every_form_of_the_report(load: Load) -> None:
    runs = load(judged_by("interval", 0.004, 0.02))
    serves_most, fastest = answers(runs)
    assert "bf16 is 2.50 times faster" in fastest
    assert "bf16, within its F1 limit, serves most" in serves_most
    assert re.search(r"\| 384 \| int8-openvino .*\| over the limit \|", markdown(runs))
    (words,) = re.findall(r'aria-label="(served, F1 against latency[^"]+)"', html_of(runs))
    assert "int8-openvino 14 ms, F1 0.9460, over the limit" in words


@pytest.mark.parametrize(
    ("guard", "variant", "drop", "width"),
    [
        ("point", "bf16", 0.02, 0.0),
        ("point", "int8-openvino", 0.009, 0.02),
        ("interval", "int8-openvino", -0.01, 0.03),
        ("interval", "int8-openvino", 0.001, 0.005),
        ("interval", "fp32", 0.02, 0.01),
    ],
)
def test_all_that_tell_of_the_guard_tell_the_same(
    load: Load, guard: str, variant: str, drop: float, width: float
) -> None:
    content = judged_by(guard, drop, drop + width, variant)
    runs = load(content)
    info = next(of_measured(content, "accuracy", variant))
    compared = accuracy.Comparison(
        "f1",
        *(info[name] for name in ("documents", "f1", "f1_baseline", "f1_drop", "f1_drop_low", "f1_drop_high")),
        drop_at_most=info["f1_drop_high"],
        visible_drop=0.01,
        lost=0,
        gained=0,
        mcnemar_p=1.0,
        flips=0,
    )
    over = variant != "fp32" and bool(
        accuracy.over_limit(compared, [], limit=info["max_f1_drop"], by=guard, what="a cell")
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(run_tables.summary(history.cells(content["benchmarks"]), title="", caption=""))
    rows = [line for line in console.export_text().splitlines() if line.startswith(f"{variant} ")]
    assert any("!" in line for line in rows) == over
    table = summary.summarize(runs)
    assert ("over the limit" in markdown(runs)) == over
    best = {"int8-openvino": "bf16", "bf16": "int8-openvino", "fp32": "int8-openvino"}
    fastest = "int8-openvino" if not over else best[variant]
    assert f"{fastest} is " in next(answer for answer in summary.answers(table) if answer.startswith("served, 384"))


def everything() -> dict[str, Any]:
    return run(*whole()["benchmarks"], *served(*VARIANTS, models=("served", "untrained")))


def test_what_serves_most_within_the_limits_is_an_answer(load: Load) -> None:
    first, second, *_ = answers(load(everything()))
    assert first == (
        "served: within 50 ms at p99 this machine takes 71.4 requests a second with int8-openvino, within its F1 "
        "limit, none with fp32 (2 workers)."
    )
    assert second.startswith("untrained: within 50 ms at p99 this machine takes 71.4 requests a second")
    content = everything()
    for info in of_measured(content, "accuracy", "int8-openvino"):
        info |= {"f1_drop": 0.02, "f1": 0.93}
    (first, *_) = answers(load(content))
    assert first == (
        "served: no variant answers within 50 ms at p99 here under any load; bf16, within its F1 limit, serves most: "
        "50.0 texts a second with 2 workers."
    )


def test_what_a_million_texts_cost_is_told_where_there_is_a_price(load: Load) -> None:
    priced = run(
        capacity("served", 384, "fp32", rate_within_limit=9.0, price_per_hour=0.17, cost_per_million=5.2),
        capacity("served", 384, "int8-openvino", price_per_hour=0.17, cost_per_million=0.7, loaded_p99_s=0.015),
    )
    (answer,) = answers(load(priced))
    assert answer.endswith(
        "with int8-openvino, 9.00 with fp32 (2 workers); a million texts cost 0.700 instead of 5.20."
    )
    assert "a million costs" in markdown(load(priced))
    assert "a million costs" not in markdown(load(run(*served("fp32"))))


def test_capacity_is_in_every_form(load: Load) -> None:
    runs = load(run(*served("fp32", "int8-openvino")))
    row = next(line for line in markdown(runs).splitlines() if "| int8-openvino" in line)
    cells = "384 | int8-openvino | 143 | 71.4 | 14 |  | 16.8 | 18.2 | 1.04 (1.00 to 1.08) | 48% | 600"
    assert row == f"| {cells} |"
    figures = pd.read_csv(io.StringIO(page.csv(machines.split(runs))))
    assert figures.loc[1, ["texts_per_s", "tokens_p50", "worker_shares"]].tolist() == [2 / 0.014, 60, "0.520 0.480"]
    html = html_of(runs)
    assert html.count("<figure>") == 3
    assert "int8-openvino 16.8 ms at 14.3 a second, 84 ms at 129" in html
    assert "texts of news, median 60 tokens (90 %: 20–128)" in html


def test_one_worker_has_no_drawing_of_what_others_do_to_it(load: Load) -> None:
    content = run(*served("fp32"))
    for name in ("loaded_over_alone", "loaded_over_alone_low", "loaded_over_alone_high"):
        del content["benchmarks"][0]["extra_info"][name]
    assert html_of(load(content)).count("<figure>") == 2


def test_another_limit_or_traffic_is_in_another_report(load: Load) -> None:
    for changed, told in (({"latency_limit_s": 0.1}, "latency limit"), ({"traffic_sha256": "f" * 64}, "traffic")):
        with pytest.raises(InputError, match=told):
            summary.summarize(load(run(*served("fp32")), run(*served("fp32", **changed))))


def test_int8_that_is_only_stated_is_said(load: Load) -> None:
    content = run(*cell("served", 384, "fp32"), *cell("served", 384, "int8-openvino"))
    for one in content["benchmarks"]:
        one["extra_info"]["stated"] = one["extra_info"]["variant"] == "int8-openvino"
    (row,) = [line for line in markdown(load(content)).splitlines() if "| int8-openvino |" in line and "stated" in line]
    assert row.endswith("int8 stated, not shown |")


def test_undominated_are_those_that_nothing_beats_in_both(load: Load) -> None:
    table = summary.summarize(load(whole()))
    here = table[(table["model"] == "served") & (table["max_length"] == 384)]
    assert here[here["undominated"]]["variant"].tolist() == ["int8-openvino", "bf16"]
    assert not table[table["model"] == "untrained"]["undominated"].any()


def test_several_runs_are_one_cell_with_their_range(load: Load) -> None:
    runs = [
        run(benchmark("latency", "m", 128, "fp32", seconds=seconds, speedup=1.0), when=f"2026-11-{day}T12:00:00Z")
        for seconds, day in ((0.1, 10), (0.4, 11), (0.2, 12))
    ]
    (row,) = summary.summarize(load(*runs)).to_dict("records")
    assert row["median_s"] == pytest.approx(0.2)
    assert (row["low_s"], row["high_s"], row["runs"]) == (0.1, 0.4, 3)


def test_the_newest_run_tells_what_latency_does_not(load: Load) -> None:
    new, old = (
        run(benchmark("accuracy", "m", 128, "fp32", f1=f1, documents=9), when=f"2026-11-{day}T00:00:00Z")
        for f1, day in ((0.9, "20"), (0.5, "10"))
    )
    assert summary.summarize(load(new, old))["score"].tolist() == [0.9]


def two_runs(**changed: Any) -> list[dict[str, Any]]:
    """Give the run of a cell and another one in which `changed` figures or parts of its identity are other ones."""
    runs = [run(*cell("served", 128, "int8-openvino")) for _ in range(2)]
    for one in runs[1]["benchmarks"]:
        info = one["extra_info"]
        info |= {name: value for name, value in changed.items() if name in info}
        info["identity"] |= {name: value for name, value in changed.items() if name in info["identity"]}
    return runs


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"documents": 50}, "documents: 500, 50"),
        ({"max_f1_drop": 0.1}, "F1 limit: 0.01, 0.1"),
        ({"f1_guard": "interval"}, "F1 guard: point, interval"),
        ({"dataset_sha256": "e" * 64}, "dataset: dddddddddddd, eeeeeeeeeeee"),
        ({"checkpoint_sha256": "e" * 64}, "checkpoint: cccccccccccc, eeeeeeeeeeee"),
        ({"threads": 2}, "threads: 1, 2"),
        ({"versions": {"torch": "2.12"}}, "torch: 2.13, 2.12"),
        ({"definition": {"precision": "int8", "options": 1}}, "definition options: none, 1"),
    ],
)
def test_what_was_not_measured_alike_is_in_no_report(load: Load, changed: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        summary.summarize(load(*two_runs(**changed)))
    assert f"({told})" in str(caught.value)
    assert "served-128-int8-openvino is not in" in str(caught.value)
    assert all(name in str(caught.value) for name in ("0.json", "1.json", "make a report of each"))


def test_what_one_run_alone_knows_of_a_machine_does_not_part_them(load: Load) -> None:
    runs = two_runs()
    for content, hardware in zip(runs, ({"family": 25}, {"family": 25, "L3 unified": "32M"}), strict=True):
        for one in content["benchmarks"]:
            one["extra_info"]["identity"]["hardware"] = hardware
    summary.summarize(load(*runs))


@pytest.mark.parametrize("changed", [{"documents": 50}, {"dataset_sha256": "e" * 64}])
def test_all_cells_of_a_report_are_of_one_dataset_and_its_documents(load: Load, changed: Any) -> None:
    runs = two_runs(**changed)
    for one in runs[1]["benchmarks"]:
        one["extra_info"]["variant"] = "bf16"
    with pytest.raises(InputError, match=r"served-128-bf16 is not in .*make a report of each"):
        summary.summarize(load(*runs))


def test_runs_that_measured_alike_or_something_else_are_one_report(load: Load) -> None:
    first, second = two_runs()
    assert summary.summarize(load(first, second))["runs"].tolist() == [2]
    first["benchmarks"], second["benchmarks"] = first["benchmarks"][:1], second["benchmarks"][1:]
    (row,) = summary.summarize(load(first, second)).to_dict("records")
    assert (row["speedup"], row["score"]) == (pytest.approx(100 / 14), 0.946)


def test_a_row_is_of_the_newest_run_and_of_no_other(load: Load) -> None:
    older, newer = two_runs(speedup=28 / 14, speedup_low=1.9, speedup_high=2.2)
    newer["datetime"] = "2026-11-02T12:00:00+00:00"
    for one in newer["benchmarks"]:
        for name in ("share_of_limit", "floor_s", "share_of_best_limit", "best_floor_s", "p95_s"):
            one["extra_info"].pop(name, None)
    (row,) = summary.summarize(load(newer, older)).to_dict("records")
    assert (row["speedup"], row["speedup_low"], row["speedup_high"]) == (2.0, 1.9, 2.2)
    assert math.isnan(row["share_of_limit"]), "it would be of the older run"
    assert math.isnan(row["p95_s"])


def as_before(content: dict[str, Any]) -> dict[str, Any]:
    """Change a run to what older versions saved of the limit."""
    for one in content["benchmarks"]:
        for name in ("limit_definition", "share_of_best_limit", "best_floor_s"):
            one["extra_info"].pop(name, None)
    return content


def test_both_shares_of_the_limit_are_shown_and_explained(load: Load) -> None:
    for text in (html_of(load(whole())), markdown(load(whole()))):
        assert "40 (30)" in text
        assert f"In brackets: {columns.BEST_LIMIT}" in text
        assert columns.LIMITS[2] in text
        assert "older versions" not in text


def test_an_old_run_keeps_its_share_and_its_explanation(load: Load) -> None:
    for text in (
        html_of(load(as_before(whole()))),
        markdown(load(as_before(whole()))),
    ):
        assert "40 (30)" not in text
        assert re.search(r"(>|\| )40( \||<)", text)
        assert columns.LIMITS[1] in text.replace("&#39;", "'")
        assert columns.LIMITS[2] not in text
        assert "Left out" not in text


def test_old_and_new_shares_of_the_limit_are_not_in_one_report(load: Load) -> None:
    old, new = as_before(run(*cell("served", 384, "bf16"))), run(*cell("served", 384, "int8-openvino"))
    runs = load(new, old)
    shares = summary.summarize(runs).set_index("variant")["share_of_limit"]
    assert shares["int8-openvino"] == pytest.approx(0.4)
    assert math.isnan(shares["bf16"])
    for text in (html_of(runs), markdown(runs)):
        assert "Left out: 1 share of the limit as older versions defined it." in text
        assert columns.LIMITS[2] in text
    (drawn,) = (text for text in html_of(runs).split("</figure>") if "share of the core" in text)
    assert "int8-openvino 40 (30) %" in drawn
    assert "bf16" not in drawn.partition("<figure>")[2]


def with_processes(**speedups: list[float]) -> dict[str, Any]:
    """Give a run whose cells at 384 tokens have these speedups, one of each process."""
    content = run(*(one for variant in VARIANTS for one in cell("served", 384, variant)))
    for one in content["benchmarks"]:
        info = one["extra_info"]
        info["identity"]["definition"]["runtime"] = info["variant"]
        if (found := speedups.get(info["variant"].replace("-", "_"))) and info["measured"] == "latency":
            info |= {"process_speedups": found, "speedup": math.prod(found) ** (1 / len(found))}
            del info["speedup_low"], info["speedup_high"]
    return content


def test_the_first_two_that_cannot_be_told_apart_are_said(load: Load) -> None:
    best = {"fp32_openvino": [2.0, 2.02, 1.98]}
    equal = summary.summarize(load(with_processes(int8_openvino=[4.0, 4.1, 3.95], bf16=[3.98, 4.02, 4.0], **best)))
    (answer,) = summary.answers(equal)
    assert answer.startswith(
        "served, 384 tokens: int8-openvino is 4.02 times faster than fp32 (3.83 to 4.21), 2.01 times"
    )
    assert re.search(r"2\.01 times faster than the best fp32 \(1\.9\d to 2\.0\d\)", answer)
    assert answer.endswith("It and bf16 cannot be told apart in speed.")
    apart = summary.summarize(load(with_processes(int8_openvino=[4.0, 4.1, 3.95], bf16=[2.98, 3.02, 3.0], **best)))
    assert "told apart" not in summary.answers(apart)[0]
    assert re.search(
        r"\| 2\.01 \(1\.9\d to 2\.0\d\) \|",
        markdown(load(with_processes(int8_openvino=[4.0, 4.1, 3.95], **best))),
    )


def slowed_down() -> dict[str, Any]:
    """Give a run during which the machine became slower: by its medians bf16 is slower than fp32-openvino."""
    content = whole()
    for one in content["benchmarks"]:
        if one["extra_info"]["variant"] == "bf16" and one["extra_info"]["measured"] == "latency":
            one["stats"] = {name: 1.4 * value for name, value in one["stats"].items()}
            for name in ("p50_s", "p95_s", "baseline_p50_s", "floor_s", "best_floor_s"):
                one["extra_info"][name] *= 1.4
    return content


def test_the_figures_of_a_row_rank_alike(load: Load) -> None:
    table = summary.summarize(load(slowed_down()))
    for _, group in table.groupby(["model", "max_length"]):
        assert group.sort_values("median_s")["variant"].tolist()[1] == "fp32-openvino"
        assert group.sort_values("latency_s")["variant"].tolist()[1] == "bf16"
        assert group.sort_values("latency_s")["speedup"].is_monotonic_decreasing


def test_a_change_of_pace_is_said(load: Load) -> None:
    runs = load(slowed_down())
    told = "The machine's pace changed by 40% among the cells of served, 384 tokens."
    assert told in markdown(runs)
    assert told.replace("'", "&#39;") in html_of(runs)
    assert "pace changed" not in markdown(load(whole()))


def test_the_spreadsheet_has_the_medians_too(load: Load) -> None:
    table = pd.read_csv(io.StringIO(page.csv(machines.split(load(slowed_down())))))
    row = table[(table["model"] == "served") & (table["max_length"] == 384)].set_index("variant").loc["bf16"]
    assert (row["latency_s"], row["median_s"]) == pytest.approx((0.040, 0.056))


def noisy(*variants: str) -> dict[str, Any]:
    content = whole()
    for info in of_measured(content, "latency", *variants):
        info |= {"speedup_low": 0.3 * info["speedup"], "speedup_high": 1.2 * info["speedup"]}
    return content


def test_an_interval_too_wide_is_told_in_words(load: Load) -> None:
    runs = load(noisy("bf16"))
    assert "| 384 | bf16 | 40 | 2.50 (too noisy) |" in markdown(runs)
    html = html_of(runs)
    assert "2.50 (too noisy)" in html
    assert "2.50 too noisy</text>" in html
    assert "int8-openvino is 7.14 times faster than fp32 (6.93 to 7.29)" in answers(runs)[0]


def test_noise_that_hides_which_is_the_fastest_is_the_answer(load: Load) -> None:
    answer = answers(load(noisy("int8-openvino")))[0]
    assert answer == (
        "served, 384 tokens: which of int8-openvino and bf16 is the fastest cannot be told, too noisy: int8-openvino."
    )


def test_the_fastest_beyond_doubt_is_named_whatever_its_noise(load: Load) -> None:
    content = noisy("int8-openvino")
    content["benchmarks"] = [one for one in content["benchmarks"] if one["extra_info"]["variant"] != "bf16"]
    answer = answers(load(content))[0]
    assert "int8-openvino is 7.14 times faster than fp32 (too noisy)" in answer


@pytest.mark.skipif("QBERT_TEST_RUN" not in os.environ, reason="QBERT_TEST_RUN names no saved run of a default run")
def test_a_run_of_another_machine_is_read_and_ranks_alike() -> None:
    table = summary.summarize(history.load([Path(os.environ["QBERT_TEST_RUN"])]))
    assert len(table) > 1
    for _, group in table.dropna(subset=["speedup"]).groupby(["model", "max_length"]):
        assert group.sort_values("latency_s")["speedup"].is_monotonic_decreasing


OBEYED = "\x1b]0;owned\x07\x1b[2J\x9b\r\u202e"


def test_a_terminal_obeys_nothing_in_a_report(tmp_path: Path) -> None:
    content = whole(text=OBEYED, label=OBEYED)
    content["commit_info"]["id"] = OBEYED
    for one in content["benchmarks"]:
        info = one["extra_info"]
        info["model"] += OBEYED
        info["variant"] += OBEYED if info["variant"] != "fp32" else ""
        info["identity"] |= {"processor": OBEYED, "dataset": OBEYED, "versions": {OBEYED: OBEYED}}
    source = tmp_path / f"{OBEYED.replace('/', '')}.json"
    source.write_text(json.dumps(content))
    written = {form: tmp_path / f"r.{form}" for form in ("html", "md", "csv")}
    options = ["-o", written["html"], "--markdown", written["md"], "--csv", written["csv"]]
    done = CliRunner().invoke(main, ["report", str(source), *map(str, options)])
    assert done.exit_code == 0, done.output
    for text in (done.output, *(path.read_bytes().decode() for path in written.values())):
        assert "␛[2J" in text.replace("\\[", "[")
        assert not set(OBEYED) - set("]0;owned[2J") & set(text)


@pytest.mark.parametrize(
    "content",
    [
        run(benchmark("latency", "m", 128, "fp32")),
        run(benchmark("accuracy", "m", 128, "fp32", f1=0.9)),
        run(benchmark("footprint", "m", 128, "fp32", disk_bytes=1e6)),
        run(*(one for one in whole()["benchmarks"] if one["extra_info"]["measured"] != "accuracy")),
        run(*(one for one in whole()["benchmarks"] if one["extra_info"]["variant"] == "int8-openvino")),
    ],
    ids=["one latency", "one accuracy", "one footprint", "no accuracy", "no fp32"],
)
def test_a_part_of_a_run_makes_a_page_too(load: Load, content: dict[str, Any]) -> None:
    runs = load(content)
    html = html_of(runs)
    assert "nan" not in re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL).lower().replace("nanumgothic", "")
    assert markdown(runs)
    assert page.csv(machines.split(runs)).count("\n") > 1


def test_text_from_data_is_text(load: Load) -> None:
    content = whole(text=MARKUP, label=MARKUP)
    for one in content["benchmarks"]:
        info = one["extra_info"]
        info["model"] += MARKUP
        info["variant"] += MARKUP if info["variant"] != "fp32" else ""
        info["identity"] |= {"processor": MARKUP, "dataset": MARKUP, "versions": {MARKUP: MARKUP}}
    runs = load(content)
    html = html_of(runs)
    assert html.count("<script") == 1
    assert "<img" not in html
    assert "<script" not in markdown(runs)
    assert "<img" not in markdown(runs)
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (0, 8, 10, 11) for line in markdown(runs).splitlines())


def test_the_page_needs_no_network(load: Load) -> None:
    html = html_of(load(whole()))
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_two_drawings_share_no_id(load: Load) -> None:
    html = html_of(load(whole()))
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 7
    ids = [set(re.findall(r'id="([^"]+)"', drawing)) for drawing in drawings]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for drawing, own in zip(drawings, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", drawing)) | set(re.findall(r'href="#([^"]+)"', drawing)) <= own


def test_every_drawing_says_in_words_what_it_shows(load: Load) -> None:
    html = html_of(load(whole()))
    words = re.findall(r'role="img" aria-label="([^"]+)"', html)
    assert len(words) == 7
    assert all("int8-openvino" in text for text in words)
    assert "int8-openvino at 384 tokens 14 ms" in words[0]


def test_many_flips_are_counted_and_not_all_shown(load: Load) -> None:
    content = whole()
    for info in of_measured(content, "accuracy"):
        info["flipped"] *= 300
    html = html_of(load(content))
    assert html.count('<td data-value="7.0">') == page.FLIPS_SHOWN
    assert f"{600 - page.FLIPS_SHOWN} more are in the saved run" in html


def test_the_command_writes_each_form(tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text(json.dumps(whole()))
    arguments = [
        str(source),
        "-o",
        str(tmp_path / "r.html"),
        "--markdown",
        str(tmp_path / "r.md"),
        "--csv",
        str(tmp_path / "r.csv"),
    ]
    done = CliRunner().invoke(main, ["report", *arguments])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("served, 384 tokens: int8-openvino")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert "| 384 | int8-openvino | 14 |" in (tmp_path / "r.md").read_text()
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + 2 * len(LENGTHS) * len(VARIANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json", "-o", "r.html"], "missing.json cannot be read"),
        (["damaged.json", "-o", "r.html"], "damaged.json cannot be used"),
        (["run.json"], "name what to write"),
        (["run.json", "-o", "no/such/folder/r.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(whole()))
    (tmp_path / "damaged.json").write_text("{")
    done = CliRunner().invoke(main, ["report", *arguments])
    assert done.exit_code == 2
    assert message in done.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if executable is None:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any, load: Load, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the page with markup in its texts; whatever it says or asks for is an error."""
    path = tmp_path / "report.html"
    path.write_text(html_of(load(whole(text=MARKUP, label=MARKUP))), encoding="utf-8")
    contexts = []

    def show(width: int, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        shown = context.new_page()
        shown.said = []
        shown.on("console", lambda message: shown.said.append(message.text))
        shown.on("pageerror", lambda error: shown.said.append(str(error)))
        shown.on("request", lambda request: shown.said.append(request.url) if request.url != path.as_uri() else None)
        shown.goto(path.as_uri())
        return shown

    yield show
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desk(opened: Callable[..., Any], width: int) -> None:
    shown = opened(width)
    assert shown.said == []
    assert shown.title() == "qbert report: served, untrained"
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    sizes = shown.evaluate("[...document.querySelectorAll('figure svg')].map(one => one.getBoundingClientRect().width)")
    assert len(sizes) == 7
    assert all(300 < size <= width for size in sizes)
    smallest = shown.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height))"
    )
    assert smallest > 7, "letters of a drawing are too small to read"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_and_in_the_dark(opened: Callable[..., Any], scheme: str) -> None:
    shown = opened(1280, scheme)

    def luminance(selector: str, name: str) -> float:
        colour = shown.evaluate(f"getComputedStyle(document.querySelector('{selector}'))['{name}']")
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance("body", "backgroundColor")
    assert (ground < 0.1) == (scheme == "dark")
    for selector, name in ((".answer", "color"), ("figcaption", "color"), ("svg text", "fill")):
        lighter, darker = sorted((ground, luminance(selector, name)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, selector


def test_a_click_on_a_heading_sorts(opened: Callable[..., Any]) -> None:
    shown = opened(1280)

    def column() -> list[float]:
        texts = shown.evaluate(
            "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[2].textContent)"
        )
        return [float(text) for text in texts]

    before = column()
    shown.click("text=latency ms >> nth=0")
    assert column() == sorted(before)
    shown.click("text=latency ms >> nth=0")
    assert column() == sorted(before, reverse=True)
    assert shown.said == []


def test_it_prints(opened: Callable[..., Any]) -> None:
    shown = opened(1280)
    assert shown.pdf(format="A4").startswith(b"%PDF")
