"""Runs of several machines in one report, and what they answer compared."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from made_up import benchmark, run, served, whole

from qbert.cli import main
from qbert.inputs import labels
from qbert.results import answers, machines, page
from qbert.system.errors import InputError

SEEN = Path(__file__).parents[3] / "shared" / "runs" / "granite-rapids.json"


def of(content: dict[str, Any], **identity: Any) -> dict[str, Any]:
    """Give the run `content` of a machine with this identity."""
    content = json.loads(json.dumps(content))
    for one in content["benchmarks"]:
        one["extra_info"]["identity"] |= identity
    return content


def judged(predicted: list[int], logits: np.ndarray, variant: str = "int8-openvino", **info: Any) -> dict[str, Any]:
    """Give an accuracy benchmark with answers: document 0 is of label 0, the others of label 1."""
    true = labels.one_hot(np.array([0, *[1] * (len(predicted) - 1)]), 2)
    told = labels.answers(true, labels.one_hot(np.array(predicted), 2), logits)
    told |= labels.packed_logits(logits) | {"label_names": ["bad", "good"]}
    return benchmark("accuracy", "served", 384, variant, f1=0.9, documents=len(predicted), answers=told, **info)


Save = Callable[..., list[str]]
Load = Callable[..., pd.DataFrame]


TWO = [whole() | {"benchmarks": [*whole()["benchmarks"], *served("fp32", "int8-openvino", rate_within_limit=9.0)]}]
TWO.append(of(TWO[0], processor="Another(R) Processor", machine_name="cheap"))


def test_each_machine_has_its_own_answer_and_figures(load: Load) -> None:
    slower = json.loads(json.dumps(TWO[1]))
    for one in slower["benchmarks"]:
        if one["extra_info"]["measured"] == "latency":
            for name in ("p50_s", "baseline_p50_s", "floor_s", "best_floor_s"):
                one["extra_info"][name] *= 3
            one["stats"] = {name: 3 * value for name, value in one["stats"].items()}
    found = machines.split(load(TWO[0], slower))
    assert [machine.label for machine in found] == ["A processor", "cheap"]
    told = machines.findings(found)
    assert sum(sentence.startswith("A processor: served, 384 tokens: int8-openvino is 7.14") for sentence in told) == 1
    assert sum(sentence.startswith("cheap: served, 384 tokens: int8-openvino is 7.14") for sentence in told) == 1
    latency = machines.side_by_side(found, "served")[0]
    assert [column.heading for column in latency.columns.values()] == ["tokens", "variant", "A processor", "cheap"]
    row = next(row for row in latency.entries() if row[0][0] == "384" and row[1][0] == "int8-openvino")
    assert [text for text, _ in row[2:]] == ["14.0", "42.0"]  # no mean of both
    html = page.render(found)
    assert "Machines side by side" in html
    assert "<dt>cheap</dt><dd>Another(R) Processor (avx2)</dd>" in html
    assert html.count("<details>") == 2
    text = page.markdown(found)
    assert "| 384 | int8-openvino | 14.0 | 42.0 |" in text
    figures = pd.read_csv(io.StringIO(page.csv(found)))
    assert set(figures["label"]) == {"A processor", "cheap"}


def test_runs_of_one_machine_are_shown_as_before(load: Load) -> None:
    html = page.render(machines.split(load(TWO[0])))
    assert "side by side" not in html
    assert "<details" not in html


def test_a_price_is_that_of_one_machine(save_all: Save, tmp_path: Path) -> None:
    files = save_all(*TWO)
    table = tmp_path / "t.md"
    done = CliRunner().invoke(main, ["report", *files, "--markdown", str(table), "--price", "cheap=0.036"])
    assert done.exit_code == 0, done.output
    cost = table.read_text().partition("A million texts cost")[2]
    assert "| 384 | fp32 |  | 1.11 |" in cost.partition("\n\n|")[2].partition("\n\n")[0]  # 0.036 / 3600 / 9 * 10**6
    wrong = CliRunner().invoke(main, ["report", *files, "--markdown", str(table), "--price", "dear=1"])
    assert wrong.exit_code == 2
    assert "the machines are 'A processor', 'cheap'" in " ".join(wrong.output.split())
    assert CliRunner().invoke(main, ["report", *files, "--price", "cheap=-1"]).exit_code == 2


def test_prices_come_from_the_settings_too(save_all: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = save_all(*TWO)
    (tmp_path / "pyproject.toml").write_text('[tool.qbert.prices]\ncheap = 0.036\n"not here" = 2\n')
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report", *files, "--markdown", "t.md"])
    assert done.exit_code == 0, done.output
    assert "| 1.11 |" in Path("t.md").read_text()


def test_what_differs_beside_the_machine_is_said(load: Load) -> None:
    other = of(TWO[1], versions={"torch": "2.12"})
    _, told = machines.notes(machines.split(load(TWO[0], other)))
    assert told == "A processor and cheap differ in more: torch: 2.13, 2.12."
    with pytest.raises(InputError, match="dataset"):
        machines.split(load(TWO[0], of(TWO[1], dataset_sha256="e" * 64)))


def test_machines_of_one_kind_have_labels_of_their_own(load: Load) -> None:
    kinds = [{"family": 6, "model": model, "instance type": "m7i.large"} for model in (1, 2)]
    found = machines.split(load(*(of(TWO[0], hardware=kind) for kind in kinds)))
    assert [machine.label for machine in found] == ["m7i.large (1)", "m7i.large (2)"]


LOGITS = np.array([[2, 1], [1, 2], [1, 3]], np.float32)


def test_answers_of_machines_are_compared(load: Load) -> None:
    other = LOGITS + np.array([[0, 0], [0, 0], [2.5, 0]], np.float32)
    first = of(run(judged([0, 1, 1], LOGITS)), machine_name="one")
    second = of(run(judged([0, 1, 0], other)), machine_name="two")
    found = machines.split(load(first, second))
    told = machines.findings(found)[-1]
    assert told == (
        "served: machines answer differently, most in int8-openvino, 384 tokens: 1 of 3 labels differ between machines "
        "(documents 2), logits by 2.5 at most (document 2)."
    )
    counts, documents = machines.answers_compared(found, "served")
    assert [text for text, _ in counts.entries()[0][2:]] == ["3", "1", "2.5", "2", "one, two"]
    assert [text for text, _ in documents.entries()[0]] == ["384", "int8-openvino", "2", "good", "bad"]
    assert "Documents that machines answer differently" in page.render(found)


@pytest.mark.parametrize(
    "other", [{"checkpoint_sha256": "e" * 64}, {"definition": {"precision": "int8", "options": 1}}]
)
def test_answers_of_another_checkpoint_or_variant_are_not_compared(load: Load, other: dict[str, Any]) -> None:
    first = of(run(judged([0, 1, 1], LOGITS)), machine_name="one")
    second = of(run(judged([0, 1, 0], LOGITS)), machine_name="two", **other)
    told = machines.findings(machines.split(load(first, second)))[-1]
    assert told.startswith("served: the answers of one and two cannot be compared")


def compared(save_all: Save, *contents: dict[str, Any], limit: int) -> tuple[int, str]:
    options = ["--across", "machines", "--max-machine-flips", str(limit)]
    done = CliRunner().invoke(main, ["compare", *save_all(*contents), *options])
    return done.exit_code, " ".join(done.output.split())


def test_the_guard_on_machine_flips(save_all: Save) -> None:
    first = of(run(judged([0, 1, 1], LOGITS)), machine_name="one")
    second = of(run(judged([0, 0, 1], LOGITS * 2)), processor="Another")
    code, output = compared(save_all, first, second, limit=1)
    assert (code, "1 of 3 labels differ between machines (documents 1)" in output) == (0, True)
    code, output = compared(save_all, first, second, limit=0)
    assert code == 1
    assert "which --max-machine-flips 0 forbids" in output
    assert compared(save_all, first, first, limit=0)[0] == 0
    trained_elsewhere = of(second, checkpoint_sha256="e" * 64)
    assert (
        "cannot be compared (checkpoint: cccccccccccc, eeeeeeeeeeee)"
        in compared(save_all, first, trained_elsewhere, limit=3)[1]
    )
    assert compared(save_all, first, trained_elsewhere, limit=3)[0] == 1
    latency = run(benchmark("latency", "m", 128, "fp32"))
    assert compared(save_all, latency, of(latency, processor="Another"), limit=3)[0] == 1
    assert CliRunner().invoke(main, ["compare", *save_all(first, second), "--max-machine-flips", "1"]).exit_code == 2


def test_latencies_of_machines_have_no_interval_and_are_not_pooled(save_all: Save) -> None:
    latency = run(benchmark("latency", "m", 128, "fp32", seconds=0.1))
    files = save_all(latency, of(run(benchmark("latency", "m", 128, "fp32", seconds=0.2)), processor="Another"))
    done = CliRunner().invoke(main, ["compare", *files, "--across", "machines"])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("fp32")]
    assert line.split() == ["fp32", "100", "200"]
    pooled = CliRunner().invoke(main, ["compare", *files, "--", files[0], "--across", "machines"])
    assert pooled.exit_code == 2
    assert "name runs of one machine on each side" in " ".join(pooled.output.split())


@pytest.mark.parametrize(("num_labels", "kind"), [(2, "float32"), (37, "float32"), (75, "float16"), (76, None)])
def test_logits_are_kept_as_they_are_in_at_most_200_kb(num_labels: int, kind: str | None) -> None:
    logits = np.random.default_rng(0).normal(size=(1000, num_labels)).astype(np.float32)
    kept = labels.packed_logits(logits)
    assert kept.get("logits_type") == kind
    assert len(json.dumps(kept)) <= 200_050
    if kept:
        rounded = logits if kind == "float32" else logits.astype(np.float16).astype(np.float32)
        assert (labels.unpacked_logits(kept, 1000) == rounded).all()


def test_logits_that_do_not_fit_are_damage(load: Load) -> None:
    damaged = judged([0, 1, 1], LOGITS)
    for wrong in ("%", base64.b64encode(b"four").decode()):
        damaged["extra_info"]["answers"]["logits"] = wrong
        with pytest.raises(InputError, match="`logits` of `answers`"):
            load(run(damaged))


def test_a_sample_names_its_documents() -> None:
    sample = {"labels": "0 1", "predicted": "0 1", "logits_sha256": "a", "rows": "4 9"}
    difference = answers.compare({"one": sample, "other": sample | {"predicted": "0 0", "logits_sha256": "b"}})
    assert difference is not None
    assert difference.rows == {9: ("1", "0")}
    assert answers.compare({"one": sample, "other": sample | {"rows": "4 8"}}) is None


@pytest.mark.skipif(not SEEN.exists(), reason="there is no saved run of another processor")
def test_an_older_run_of_another_processor_stands_beside_newer_ones(load: Load) -> None:
    seen = json.loads(SEEN.read_text())
    found = machines.split(load(seen, of(seen, machine_name="the same again")))
    assert [machine.label for machine in found] == ["Intel Xeon, 2 cores", "the same again"]
    assert re.search(r"bert-tiny: the answers of .* cannot be compared", "\n".join(machines.findings(found)))
    assert page.render(found)
