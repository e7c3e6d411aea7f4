"""What one core can do at best, against what is known by counting and by doing."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from qbert import variants
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import latency, roofline
from qbert.measure.cells import Suite
from qbert.measure.roofline import Core, Shapes, Work
from qbert.system import machine
from qbert.system.errors import CannotRunError, InputError
from qbert.variants.base import Products
from qbert.variants.native import rates as native

Made = Callable[[str, Callable[[Path], object]], Path]
SQUARE: Shapes = ((512, 512),)
PARTS = {"fp32": 4e9, "bf16": 2e9, "int8": 1e9}


def test_work_is_that_of_a_count_by_hand(trained: Checkpoint) -> None:
    config = trained.config
    hidden, wide, length, labels = config.hidden_size, config.intermediate_size, 128, config.num_labels
    layer, head = 4 * hidden * hidden + 2 * hidden * wide, hidden * hidden + hidden * labels
    keys_and_values = 2 * hidden * hidden
    whole = config.num_hidden_layers - 1
    work = roofline.work(trained, length)
    assert work
    assert work.products == 2 * (whole * length * layer + length * keys_and_values + layer - keys_and_values + head)
    assert work.attention == 2 * (whole * 2 * length * length * hidden + 2 * length * hidden)
    assert work.weights == config.num_hidden_layers * layer + head
    assert work.shapes == ((hidden, hidden), (hidden, wide), (wide, hidden))


def test_operations_of_every_family_grow_with_the_length(family: Checkpoint) -> None:
    short, long = (roofline.work(family, length) for length in (128, 256))
    assert short
    assert long
    assert 0 < 1.9 * short.products < long.products < 2.1 * short.products
    assert 2 * short.attention < long.attention <= 4 * short.attention
    assert short.weights == long.weights


@pytest.mark.parametrize(("best", "calls"), [(1e9, 1), (0.0, roofline.CALLS + 2)], ids=["hopeless", "only one"])
def test_what_is_long_and_far_from_the_best_rate_is_called_once(best: float, calls: int) -> None:
    made: list[float] = []

    def call() -> None:
        made.append(time.perf_counter())
        time.sleep(1.2 * roofline.LONG_S)

    rate = roofline.product_rate(1000, call, best)
    assert len(made) == calls
    assert 0 < rate <= 1000 / (1.2 * roofline.LONG_S)


@pytest.fixture
def sleeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put in the place of all kernels two libraries that sleep, 10 and 20 us for each row."""

    def products(inputs: int, _: int) -> Products:
        yield "fp32", "slow", lambda rows: partial(time.sleep, rows * 2e-5)
        yield "fp32", "quick", lambda rows: partial(time.sleep, rows * (1e-5 if inputs == 512 else 3e-5))

    monkeypatch.setattr(roofline, "RUNTIMES", {(): products, ("no_such_package",): None})
    monkeypatch.setattr(native, "register_loops", dict)
    roofline.core.cache_clear()
    roofline.kernels.cache_clear()
    yield
    roofline.core.cache_clear()
    roofline.kernels.cache_clear()


@pytest.mark.usefixtures("sleeping")
def test_a_rate_is_of_the_fastest_library_and_shape() -> None:
    operations = 2 * 512 * 512

    def is_known() -> bool:
        core = roofline.core(((512, 512), (512, 2), (2, 512)), 1000, 1000)
        assert core.rates["fp32"].keys() == {"slow", "quick"}
        return core.rate("fp32") == core.rates["fp32"]["quick"] == pytest.approx(operations / 1e-5, rel=0.15)

    assert holds(is_known)
    core = roofline.core(((512, 512),), 1000, 1000)
    assert list(core.rates) == ["fp32"]
    assert math.isnan(core.rate("bf16"))


@pytest.mark.usefixtures("sleeping")
def test_it_is_measured_once_for_a_model_and_number_of_tokens() -> None:
    core = roofline.core(SQUARE, 1000, 100)
    assert roofline.core(SQUARE, 1000, 100) is core
    assert roofline.core(SQUARE, 1000, 101) is not core


def test_a_loop_in_registers_counts_as_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(repeats: int) -> int:
        time.sleep(repeats * 1e-4)
        return repeats * 10**11

    monkeypatch.setattr(native, "register_loops", lambda: {"int8": loop})
    roofline.core.cache_clear()
    assert holds(lambda: roofline.core(SQUARE, 1000, 16).rate("int8") == pytest.approx(1e15, rel=0.2))
    roofline.core.cache_clear()


def holds(check: Callable[[], bool]) -> bool:
    """Whether `check` does with the core as known, or as measured again: a neighbour may have had it."""
    for _ in range(8):
        if check():
            return True
        roofline.core.cache_clear()
    return False


def test_what_runs_in_pytorch_stays_below_the_limit() -> None:
    """Of both the best of all turns counts: what else runs only slows them."""
    a = torch.rand(512, 512)
    torch.set_num_threads(1)
    limits, rates = [], []

    def is_below() -> bool:
        limits.append(roofline.core(SQUARE, 512 * 512, 512).rate("fp32"))
        with machine.one_core():
            rates.append(2 * 512**3 / roofline.seconds_of(lambda: a @ a))
        return max(limits) / 10 < max(rates) < 1.1 * max(limits)

    assert holds(is_below)


def test_rates_are_in_the_order_of_the_precisions() -> None:
    def are_rates() -> bool:
        rates = roofline.core(SQUARE, 512 * 512, 128).rates
        assert list(rates) == [name for name in roofline.PRECISIONS if name in rates]
        assert {"fp32", "int8"} <= set(rates)
        return all(rate > 1e9 for known in rates.values() for rate in known.values())

    assert holds(are_rates)


def test_caches_are_in_the_bandwidth() -> None:
    best = {100_000: 0.0, 50_000_000: 0.0}  # bytes a second by the number of weights: 12 where 50 are in a cache

    def is_faster() -> bool:
        for weights, known in best.items():
            best[weights] = max(known, roofline.core(SQUARE, weights, 16).bandwidths["fp32"])
        small, large = best.values()
        return small > 1.2 * large > 1e9

    assert holds(is_faster)


CORE = Core({"fp32": {"a": 1e11, "b": 5e10}, "bf16": {"a": 4e11}, "int8": {"a": 8e11}}, PARTS)
WORK = Work(products=8e9, attention=4e8, weights=1_000_000, shapes=SQUARE)


def test_a_floor_is_of_its_parts_at_their_rates() -> None:
    floor = roofline.floor(WORK, CORE, "int8-bf16", "bfloat16")
    assert floor.own_s == pytest.approx(8e9 / 8e11 + 4e8 / 4e11)
    assert floor.best_s == pytest.approx(8.4e9 / 8e11)
    floor = roofline.floor(WORK, CORE, "fp32", "float32")
    assert floor.own_s == pytest.approx(8.4e9 / 1e11)
    assert floor.best_s == pytest.approx(8e9 / 1e11 + 4e8 / 8e11)


def test_a_floor_is_no_less_than_reading_the_weights() -> None:
    heavy = replace(WORK, weights=100_000_000)
    assert roofline.floor(heavy, CORE, "int8", "float32") == roofline.Floor(0.1, 0.1)
    assert roofline.floor(heavy, CORE, "fp32", "float32") == roofline.Floor(0.1, 0.1)


def test_attention_in_a_precision_that_is_not_known_counts_at_the_best_rate() -> None:
    floor = roofline.floor(WORK, CORE, "int8", "something new")
    assert floor.own_s == floor.best_s == pytest.approx(8.4e9 / 8e11)


def test_weights_bind_below_the_crossing() -> None:
    tokens = CORE.crossing("int8")
    assert tokens == 400
    at = Work(products=2 * tokens * WORK.weights, attention=0, weights=WORK.weights, shapes=SQUARE)
    assert at.products / CORE.rate("int8") == pytest.approx(at.weights / CORE.bandwidths["int8"])


def test_a_precision_without_a_rate_has_no_floor() -> None:
    assert math.isnan(roofline.floor(WORK, CORE, "fp8", "float32").own_s)


@pytest.fixture(scope="session")
def wide(made: Made, news: Dataset) -> Checkpoint:
    """Two layers as wide as BERT-base's."""

    def make(folder: Path) -> None:
        tokenizer = training.learn_vocabulary(news.train["text"])
        config = transformers.BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, num_labels=5)
        transformers.set_seed(0)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return Checkpoint.open(made("wide", make))


def cases() -> Iterator[Any]:
    """Every variant with the model `trained`, and the fastest with `wide`; what takes longer is slow."""
    for row in (row for row in variants.VARIANTS.values() if not row.missing()):
        compiled = [pytest.mark.exhaustive] if row.runtime == "TorchInductor" else []
        for length in (16, 128):
            yield pytest.param("trained", row.name, length, marks=compiled or [pytest.mark.slow] * row.calibrated)
        if row.name in {"fp32-openvino", "int8-native", "int8-openvino"} or compiled:
            yield pytest.param("wide", row.name, 128, marks=compiled or [pytest.mark.slow])


@pytest.mark.parametrize(("model", "name", "length"), cases())
def test_no_variant_is_faster_than_the_limit(
    model: str, name: str, length: int, news: Dataset, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(model)
    suite = Suite(news, [str(checkpoint.folder)], max_lengths=[length])
    cell = suite.cell(next(iter(suite.models)), length, name)
    try:
        classifier = cell.classifier
    except CannotRunError as error:
        pytest.skip(str(error))
    encoding = checkpoint.encoder.fill(news, length)
    with machine.one_core():
        fastest = min(latency.time_call(classifier, encoding) for _ in range(30))
    for _ in range(3):  # each measures the core again
        with contextlib.suppress(InputError):
            cell.limit(fastest, classifier.evidence)
            break
    figures = cell.limit(fastest, classifier.evidence)  # raises where it is faster
    assert 0 < figures["share_of_best_limit"] <= figures["share_of_limit"] <= 1
    assert figures["floor_s"] / fastest == figures["share_of_limit"]
    assert figures["limit_definition"] == roofline.DEFINITION


def test_the_librarys_loops_count_their_operations() -> None:
    loops = native.register_loops()
    if not loops:
        pytest.skip("this library has no such loops")
    for loop in loops.values():
        assert loop(200) == 2 * loop(100) > 0


def test_the_librarys_reader_reads_all_of_it() -> None:
    read = native.reader()
    if not read:
        pytest.skip("this library has no reader")
    memory = np.ones(1_000_003, dtype=np.uint8)
    assert read(memory) == read(memory)


def test_the_librarys_product_takes_longer_for_more_rows() -> None:
    products = list(native.products(768, 768))
    if not products:
        pytest.skip("this library has no product to measure")
    ((precision, name, product),) = products
    assert (precision, name) == ("int8", "int8-native")
    few, many = (roofline.seconds_of(product(rows)) for rows in (16, 512))
    assert few < many
