"""Options and fixtures of the benchmarks in bench/; what they do is in the package qbert."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from qbert.errors import TRACEBACK, CannotRunError, pip_install, sentence
from qbert.terminal import shown

if TYPE_CHECKING:
    import pandas as pd

    from qbert.latency import Timers
    from qbert.suite import Cell, Suite

SUITE = pytest.StashKey["Suite"]()
MISTAKE = pytest.StashKey[str]()
RESULTS = pytest.StashKey["list[dict[str, Any]]"]()
PREVIOUS = pytest.StashKey["list[dict[str, Any]]"]()
COMPARED = pytest.StashKey["list[str]"]()
FAILED = pytest.StashKey["list[str]"]()
CANNOT = pytest.StashKey["dict[str, str]"]()


def positive(kind: type) -> Any:
    """Return an argparse type that takes numbers above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse: invalid positive int value: '0'
    return parse


def drop(text: str) -> float:
    """Parse an F1 drop; one below 0 asks for a gain."""
    value = float(text)
    if not -1 <= value <= 1:
        raise ValueError
    return value


def lengths(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of maximum lengths, in tokens."""
    return tuple(dict.fromkeys(positive(int)(part) for part in text.split(",")))


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    # Said here, since pyproject.toml has options of pytest-benchmark, which nothing would know.
    if not hasattr(pluginmanager.hook, "pytest_benchmark_update_json"):
        raise pytest.UsageError("this suite needs pytest-benchmark, and it is off: leave out -p no:benchmark")
    group = parser.getgroup("qbert", "qbert: quantized BERT text classifiers")
    add = group.addoption
    add(
        "--model",
        action="append",
        metavar="MODEL",
        help="checkpoint folder, hub id or built-in model; repeatable",
    )
    add("--dataset", default="news_mini", metavar="DIR", help="folder with train.csv, test.csv and label.json")
    add(
        "--variants",
        default="default",
        metavar="LIST",
        help="names with commas between; also 'default' and 'all'",
    )
    add("--max-lengths", type=lengths, default=(128, 256, 384), metavar="LIST", help="tokens: 128,256,384")
    add(
        "--documents",
        type=positive(int),
        metavar="N",
        help="judge by a sample of N test documents, not by all",
    )
    add(
        "--max-f1-drop",
        type=drop,
        metavar="DROP",
        help="greatest F1 drop allowed, 0 to 1 (the variant's own: 0.01)",
    )
    add(
        "--f1-guard",
        choices=["point", "interval"],
        default="point",
        help="judge the F1 drop or its interval's upper end",
    )
    add(
        "--strict-guard",
        action="store_true",
        help="fail for every variant over its limit, not only for those that --variants names",
    )
    add(
        "--seconds-per-cell",
        type=positive(float),
        default=1.5,
        metavar="S",
        help="time to measure each latency cell for",
    )
    add(
        "--experiments",
        type=positive(int),
        default=1,
        metavar="N",
        help="training seeds of each built-in model",
    )


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if getattr(options, "benchmark_histogram", None) and importlib.util.find_spec("pygal") is None:
        raise pytest.UsageError(f"--benchmark-histogram needs pygal, not installed: {pip_install('histogram')}")
    if getattr(options, "benchmark_compare_fail", None) and not options.benchmark_compare:
        raise pytest.UsageError("--benchmark-compare-fail judges what --benchmark-compare compares: give that too")
    config.addinivalue_line("markers", "trained_models: leave out the cells of models without a trained head")
    config.addinivalue_line("markers", "own_process: cells of the greatest length alone, each run in its own process")
    config.stash[RESULTS] = []
    config.stash[PREVIOUS] = []
    config.stash[COMPARED] = []
    config.stash[FAILED] = []
    config.stash[CANNOT] = {}


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    from qbert.results import previous

    if why := previous.unusable([compared_benchmark], disabled=False):
        raise pytest.UsageError(why)
    config.stash[PREVIOUS].append(compared_benchmark)
    compared_benchmark["machine_info"] = machine_info  # what differs is said of each cell, and not as two dictionaries


def suite_of(config: pytest.Config) -> "Suite":
    """Return the session's suite, made when the first benchmark is collected."""
    if SUITE not in config.stash:
        from qbert import dataset
        from qbert.suite import DEFAULT_MODELS, Suite

        options = config.option
        config.stash[SUITE] = Suite(
            dataset.load(options.dataset),
            options.model or DEFAULT_MODELS,
            max_lengths=options.max_lengths,
            experiments=options.experiments,
        )
    return config.stash[SUITE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    from qbert import variants

    trained_only, longest_only = (
        metafunc.definition.get_closest_marker(marker) is not None for marker in ("trained_models", "own_process")
    )
    cells = []
    try:
        suite = suite_of(metafunc.config)
        cells = [
            pytest.param(model.name, max_length, variant.name, id=f"{model.name}-{max_length}-{variant.name}")
            for model in suite.models.values()
            if model.trained or not trained_only
            for max_length in ([max(suite.max_lengths)] if longest_only else suite.max_lengths)
            for variant in variants.select(metafunc.config.option.variants)
        ]
    except Exception as error:  # of any kind: while a file is collected, it would come with a traceback
        if os.environ.get(TRACEBACK):
            raise
        metafunc.config.stash[MISTAKE] = shown(sentence(error))
    metafunc.parametrize(("model", "max_length", "variant"), cells)


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if MISTAKE in config.stash:
        raise pytest.UsageError(config.stash[MISTAKE])
    benchmarks = config.pluginmanager.getplugin("pytest-benchmark")
    if SUITE in config.stash and not benchmarks:
        raise pytest.UsageError("the cells need pytest-benchmark, and it is off: leave out -p no:benchmark")
    if benchmarks and config.option.benchmark_compare and not config.option.collectonly:
        from qbert.results import previous

        runs = config.stash[PREVIOUS]
        if why := previous.unusable(runs, disabled=benchmarks.disabled or benchmarks.skip):
            raise pytest.UsageError(why)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark saves and compares
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    benchmarks = session.config.pluginmanager.getplugin("pytest-benchmark")
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if benchmarks and reporter and SUITE in session.config.stash:
        from qbert.results import previous

        stash = session.config.stash
        runs = stash[PREVIOUS]
        ended = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}
        stash[FAILED] = [report.nodeid for kind in ("failed", "error") for report in reporter.stats.get(kind, [])]
        stash[COMPARED], failed = previous.finish(
            benchmarks, runs, whole=ended, max_f1_drop=session.config.option.max_f1_drop
        )
        stash[FAILED] += failed
        if failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if stash[FAILED] or not ended:
            stash[COMPARED] += previous.leave_unsaved(benchmarks)
    yield


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    from qbert import machine

    output_json["qbert"] = {"failed": config.stash[FAILED], "boot": machine.boot()}


def failed(why: str) -> BaseException:
    return pytest.fail.Exception(why, pytrace=False)


@contextlib.contextmanager
def in_a_sentence(cannot: Callable[[str], BaseException] = failed) -> Iterator[None]:
    """Fail, with a sentence and without a traceback, where something is raised within.

    Where that is a variant which cannot run the model, raise what `cannot` makes of the reason.
    """
    try:
        yield
    except Exception as error:  # of any kind: the outer net of the cells
        if os.environ.get(TRACEBACK):
            raise
        give_up = cannot if isinstance(error, CannotRunError) else failed
        raise give_up(shown(sentence(error))) from None


@pytest.fixture
def named(request: pytest.FixtureRequest, variant: str) -> bool:
    """Whether --variants names the variant itself, and does not bring it along with 'default' or 'all'."""
    from qbert import variants

    return variant in variants.named(request.config.option.variants)


@pytest.fixture
def attempt(
    request: pytest.FixtureRequest, model: str, max_length: int, variant: str, *, named: bool
) -> Callable[[], AbstractContextManager[None]]:
    """Return the context for what the variant may be unable to do: if it was brought along, that is no failure."""
    from qbert.variants import BASELINE

    def left_out(why: str) -> BaseException:
        request.config.stash[CANNOT].setdefault(f"{model}-{max_length}-{variant}", why)
        return pytest.skip.Exception(why)

    return lambda: in_a_sentence(failed if named or variant == BASELINE else left_out)


@pytest.fixture
def cell(
    request: pytest.FixtureRequest,
    model: str,
    max_length: int,
    variant: str,
    attempt: Callable[[], AbstractContextManager[None]],
) -> "Cell":
    """One model, maximum length and variant: built, or what it takes to build it in another process."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    own_process = request.node.get_closest_marker("own_process")
    with capture.global_and_fixture_disabled():  # shows the progress of a training
        with in_a_sentence():
            built = suite_of(request.config).cell(model, max_length, variant)
            _ = built.checkpoint if own_process else built.baseline
        with attempt():
            _ = built.folder if own_process else built.classifier
    return built


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    funcargs = getattr(item, "funcargs", {})
    if "cell" in funcargs and funcargs["benchmark"].stats and not funcargs["benchmark"].has_error:
        item.config.stash[RESULTS].append(funcargs["benchmark"].stats.as_dict(include_data=False))


@pytest.fixture(scope="session")
def timers() -> "Iterator[Timers]":
    """Give the processes that time latency; they end with the session."""
    from qbert.latency import Timers

    with contextlib.closing(Timers()) as started:
        yield started


@pytest.fixture(scope="session")
def documents(request: pytest.FixtureRequest) -> "pd.DataFrame":
    """Return the test documents to judge by."""
    with in_a_sentence():
        return suite_of(request.config).dataset.documents(request.config.option.documents)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    benchmarks = config.pluginmanager.getplugin("pytest-benchmark")
    if benchmarks and SUITE in config.stash:
        benchmarks.performance_regressions.clear()  # among what is told below; it would raise for them
    try:
        yield
    finally:  # pytest-benchmark may raise here, as where a histogram cannot be written
        results = config.stash[RESULTS]
        if results:
            from qbert.results import history, tables

            table = tables.summary(
                history.cells(results),
                title=f"qbert: {suite_of(config).dataset.name}, batch 1, one thread",
                caption=(
                    "ms: one encoding of that many tokens to logits, steady state. Speedup, F1 drop,\n"
                    "flips: against fp32; over best fp32: over the fastest fp32, and half of its 95 %\n"
                    "interval. Of limit: of what this core can do."
                )
                + odds(config),
            )
            terminalreporter.write_line("")
            tables.show(table)
        if told := marks(config):
            from rich.text import Text

            from qbert.results import tables

            tables.show(Text("\n".join(["", *told]), style="yellow"))
        if config.stash[COMPARED]:
            terminalreporter.section("this run and the previous one")
            for line in config.stash[COMPARED]:
                terminalreporter.write_line(line, red=True)


def odds(config: pytest.Config) -> str:
    """Return how often the F1 guard errs in the cell with the most flips, on a line of its own."""
    from qbert import accuracy
    from qbert.variants import BASELINE

    judged = [one["extra_info"] for one in config.stash[RESULTS] if "f1_guard" in one["extra_info"]]
    judged = [info for info in judged if info["variant"] != BASELINE and info["f1_guard"] == "point"]
    if not judged:
        return ""
    most = max(judged, key=lambda info: info["flips"])
    return f"\n{accuracy.odds(most['documents'], most['flips'], most['max_f1_drop'])} (the most flips of all cells)."


def marks(config: pytest.Config) -> list[str]:
    """Return what is told of variants that 'default' or 'all' brought along, and is no failure."""
    from qbert.results import tables

    passed = [] if config.option.strict_guard else [one["extra_info"] for one in config.stash[RESULTS]]
    over = [tables.over_limit(info) for info in passed if info.get("over_limit") and not info["named"]]
    if over:
        over.append("--variants names none of these, so the run passes; with --strict-guard it fails.")
    cannot = config.stash[CANNOT]
    cells = {why: ", ".join(name for name in cannot if cannot[name] == why) for why in cannot.values()}
    return over + [f"{names} left out: {why}" for why, names in cells.items()]
