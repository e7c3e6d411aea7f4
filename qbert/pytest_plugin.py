"""The pytest plugin: options, fixtures and hooks for the cases in bench/, and for a team's own cases.

pytest loads it in every project of the environment. So it imports nothing slow until a case is collected, its options
begin with `--qbert-`, and its hooks do not affect other tests and their benchmarks.
"""

import contextlib
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qbert.inputs.options import OPTIONS
from qbert.system.errors import TRACEBACK, CannotRunError, pip_install, sentence

if TYPE_CHECKING:
    import pandas as pd

    from qbert.inputs.settings import Settings
    from qbert.measure.capacity import Load
    from qbert.measure.cells import Cell, Suite
    from qbert.measure.latency import Timed, Timers
    from qbert.variants import Variant

CASES = "qbert.bench"
"""The package of the cases; in a clone it is the folder bench/."""
KINDS = ("latency", "accuracy", "footprint", "capacity")
"""What the cases of this package measure, in the order in which they are run."""
GROUPED = KINDS[:2]
"""Those of one model and length after the other: a table of each such group appears as soon as it is whole."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options with a prefix that no other project uses."""
    add_options(parser, "--qbert-")


def add_options(parser: pytest.Parser, prefix: str) -> None:
    """Add OPTIONS, each as `prefix` and its name, except names that another plugin or conftest.py has added."""
    group = parser.getgroup("qbert", "qbert: quantized BERT text classifiers")
    for option in OPTIONS.values():
        with contextlib.suppress(ValueError):
            group.addoption(*(f"{prefix}{name}" for name in option.names), **option.for_pytest())


@dataclass
class State:
    """The state of a session's cases."""

    suite: "Suite | None" = None
    """It is made when the first case is collected."""
    mistake: str = ""
    """The error of the user's input that was found while a file was collected."""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Benchmarks in the format of pytest-benchmark, by full name: a test that was run again counts as it ended."""
    previous: list[dict[str, Any]] = field(default_factory=list)
    """The runs that --benchmark-compare names."""
    compared: list[str] = field(default_factory=list)
    """Lines of the comparison with the previous runs."""
    failed: list[str] = field(default_factory=list)
    """Node ids of failed tests, and other reasons why the run fails."""
    cannot: dict[str, str] = field(default_factory=dict)
    """Why a cell was left out, by the cell's name."""
    settings: "Settings | None" = None
    timers: "Timers | None" = None
    collected: int = 0
    """How many cells were collected."""
    running: str = ""
    """The node id of the test that is run, or was when the run was interrupted."""
    is_part: bool = False
    """Whether the run was interrupted, so that only some of its cells are saved."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """What each cell took so far, by what it measures."""


STATE = pytest.StashKey[State]()
PLACE = pytest.StashKey[int]()
PARALLEL = "qbert_parallel"
"""The key by which a worker of pytest-xdist reports to the controller that it has cells to time."""


def _state(config: pytest.Config) -> State:
    return config.stash.setdefault(STATE, State())


def _is_case(path: Path) -> bool:
    """Whether `path` is in the folder of this package's cases."""
    return path.resolve().is_relative_to((Path(__file__).parent / CASES.rpartition(".")[2]).resolve())


def _is_of_cases(config: pytest.Config) -> bool:
    """Whether the command line names the cases of this package, so that pytest-benchmark's options apply to them."""
    paths = [str(argument).partition("::")[0] for argument in config.args]
    return any(path.startswith(CASES) or _is_case(Path(path)) for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks of cases; where this package's own cases run, check pytest-benchmark's options."""
    config.addinivalue_line("markers", "trained_models: leave out the cells of models without a trained head")
    config.addinivalue_line("markers", "own_process: the cells run in other processes, so they are only built here")
    config.addinivalue_line("markers", "greatest_length: cells of the greatest length alone")
    config.addinivalue_line(
        "markers", "also_threads: beside each variant, it with each number of --threads and --batch"
    )
    if _is_of_cases(config):
        _check_options(config)


def check_benchmarks(plugins: pytest.PytestPluginManager) -> None:
    """Raise UsageError where pytest-benchmark is not loaded, under either of its names."""
    if not any(map(plugins.hasplugin, ("benchmark", "pytest_benchmark.plugin"))):
        raise pytest.UsageError("the cells need pytest-benchmark, and it is off: leave out -p no:benchmark")


def _check_options(config: pytest.Config) -> None:
    options = config.option
    check_benchmarks(config.pluginmanager)
    if getattr(options, "benchmark_histogram", None) and importlib.util.find_spec("pygal") is None:
        raise pytest.UsageError(f"--benchmark-histogram needs pygal, not installed: {pip_install('histogram')}")
    if getattr(options, "benchmark_compare_fail", None) and not options.benchmark_compare:
        raise pytest.UsageError("--benchmark-compare-fail judges what --benchmark-compare compares: give that too")


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Keep the previous run, to compare more than times."""
    _state(config).previous.append(compared_benchmark)
    if not _is_of_cases(config):
        return
    from qbert.results import previous

    if why := previous.unusable([compared_benchmark], disabled=False):
        raise pytest.UsageError(why)
    compared_benchmark["machine_info"] = machine_info  # differences are reported per cell, not as two dictionaries


def settings_of(config: pytest.Config) -> "Settings":
    """Return the session's settings: from the command line, `[tool.qbert]` at or above the rootdir, or the defaults."""
    state = _state(config)
    if state.settings is None:
        from qbert.inputs import settings

        given = {option.key: getattr(config.option, option.dest) for option in OPTIONS.values() if option.key}
        state.settings = settings.here(config.rootpath, **given)
    return state.settings


def suite_of(config: pytest.Config) -> "Suite":
    """Return the session's suite; the first call makes it."""
    state = _state(config)
    if state.suite is None:
        from qbert.inputs import dataset
        from qbert.measure.cells import Suite

        settings = settings_of(config)
        state.suite = Suite(
            dataset.load(settings.dataset),
            settings.models,
            max_lengths=settings.max_lengths,
            experiments=config.option.qbert_experiments,
            machine_name=config.option.qbert_machine_name or "",
        )
    return state.suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each cell where the fixture `cell` is used and is ours, not another project's."""
    if not {"cell", "qbert_suite"} <= set(metafunc.fixturenames):
        return
    config, state = metafunc.config, _state(metafunc.config)
    cells: list[Any] = []
    if hasattr(config, "workerinput"):
        config.workeroutput[PARALLEL] = True  # type: ignore[attr-defined]  # pytest-xdist's
    elif not state.mistake:
        try:
            cells = list(_cells(metafunc))
        except Exception as error:  # of any class: pytest would show a traceback while it collects
            if os.environ.get(TRACEBACK):
                raise
            state.mistake = _shown(sentence(error))
    metafunc.parametrize(("model", "max_length", "variant"), cells)


def _cells(metafunc: pytest.Metafunc) -> Iterator[Any]:
    from qbert import variants

    trained_only, greatest_length = (
        metafunc.definition.get_closest_marker(marker) is not None for marker in ("trained_models", "greatest_length")
    )
    suite = suite_of(metafunc.config)
    chosen = variants.select(settings_of(metafunc.config).variant_list)
    if metafunc.definition.get_closest_marker("also_threads"):
        chosen += _with_threads(metafunc.config, chosen)
    models = [model.name for model in suite.models.values() if model.trained or not trained_only]
    lengths = [max(suite.max_lengths)] if greatest_length else suite.max_lengths
    names = [variant.name for variant in chosen]
    cells = list(itertools.product(models, lengths, names))
    if greatest_length:  # those of one runtime follow each other: capacity_crew starts processes for all of them
        cells.sort(key=lambda cell: names.index(cell[-1]))
    for model, max_length, variant in cells:
        yield pytest.param(model, max_length, variant, id=f"{model}-{max_length}-{variant}")


def _with_threads(config: pytest.Config, chosen: "list[Variant]") -> "list[Variant]":
    """Return each of `chosen` with each number of --threads and --batch as a variant of its own, where it takes one."""
    from qbert import variants

    rows = []
    option = config.option
    for name, numbers, make in (
        ("threads", option.qbert_threads, variants.with_threads),
        ("batch", option.qbert_batch, variants.with_batch),
    ):
        for variant in chosen if numbers else ():
            try:
                rows += [make(variant, number) for number in numbers]
            except CannotRunError as error:
                _state(config).cannot.setdefault(f"{variant.name} with --{name}", str(error))
    return rows


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each cell its place in the order of collection."""
    if "qbert_suite" in getattr(item, "fixturenames", ()):
        state = _state(item.config)
        item.stash[PLACE] = state.collected
        state.collected += 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what is wrong before anything is run, and bring the cells in order: pytest-randomly would mix the models."""
    cells = iter(sorted((item for item in items if PLACE in item.stash), key=_order))
    items[:] = [next(cells) if PLACE in item.stash else item for item in items]
    _check_collected(config, items)


def _order(item: pytest.Item) -> tuple[Any, ...]:
    """Return what a session's cells are sorted by: first those of which a table appears as soon as its group is whole.

    These are the latency and accuracy of one model and length after the other; a team's own cases stay as they are.
    """
    place, kind = item.stash[PLACE], _kind(item)
    if not kind:
        return len(KINDS), place
    group = _group_key(item)
    return (0, *group, KINDS.index(kind), place) if group else (KINDS.index(kind), place)


def _group_key(item: pytest.Item) -> tuple[int, int] | None:
    """Return the places of a case's model and length among the session's; None if it is not of GROUPED."""
    if _kind(item) not in GROUPED:
        return None
    suite, params = suite_of(item.config), item.callspec.params  # type: ignore[attr-defined]  # of a pytest.Function
    return list(suite.models).index(params["model"]), suite.max_lengths.index(params["max_length"])


def _kind(item: pytest.Item) -> str:
    """Return what a case of this package measures; empty for any other test."""
    name, suite = getattr(item, "originalname", "").removeprefix("test_"), _state(item.config).suite
    if name not in KINDS or PLACE not in item.stash or suite is None or not _is_case(item.path):
        return ""
    model = item.callspec.params["model"]  # type: ignore[attr-defined]  # of a pytest.Function
    return name if model in suite.models else ""  # where there are no cells, pytest makes a test without parameters


def _check_collected(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Raise errors of the user's input, and match the cases with the previous runs."""
    state = _state(config)
    if getattr(config, "workeroutput", {}).get(PARALLEL):
        items.clear()
    if state.mistake:
        raise pytest.UsageError(state.mistake)
    if state.suite is None:
        return
    check_benchmarks(config.pluginmanager)
    benchmarks = config.pluginmanager.getplugin("pytest-benchmark")
    timed = not (benchmarks.skip or config.option.benchmark_disable or config.option.collectonly)
    if timed and config.getoption("dist", "no") != "no":
        raise pytest.UsageError(
            "the cells are timed, and pytest-benchmark is off beside pytest-xdist: leave out --dist (or give -n 0)"
        )
    if not (benchmarks.disabled or benchmarks.skip):
        _check_once(items)
    if config.option.benchmark_compare and not config.option.collectonly:
        from qbert.results import previous

        if why := previous.unusable(state.previous, disabled=benchmarks.disabled or benchmarks.skip):
            raise pytest.UsageError(why)
        previous.match_names(benchmarks, state.previous, [item.nodeid for item in items])


def _check_once(items: list[pytest.Item]) -> None:
    from qbert.results.compare import CELL, MEASURED

    seen: dict[tuple[Any, ...], str] = {}
    for item in items:
        kind = getattr(item, "originalname", "").removeprefix("test_")
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if kind in MEASURED and PLACE in item.stash and set(CELL) <= set(params):
            cell = kind, *(params[name] for name in CELL)
            if cell in seen:
                raise pytest.UsageError(
                    f"{seen[cell]} and {item.nodeid} would measure one cell twice: leave out what repeats it (--count, "
                    "a second folder); for more samples, save several runs and name them all"
                )
            seen[cell] = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Show the table of a group of cells when it is whole, and what is left of the run."""
    state, start = _state(item.config), time.monotonic()
    state.running = item.nodeid
    result = yield
    state.running = ""
    if kind := _kind(item):
        state.seconds.setdefault(kind, []).append(time.monotonic() - start)
        if kind in GROUPED and nextitem and _group_key(nextitem) != _group_key(item):
            _finish_group(item)
    return result


def _finish_group(item: pytest.Item) -> None:
    """Show the table of the group of `item`, unless some of it is still to come; end the timing after the last."""
    later = item.session.items[item.session.items.index(item) + 1 :]
    kinds = [kind for other in later if (kind := _kind(other))]
    state, reporter = _state(item.config), item.config.pluginmanager.getplugin("terminalreporter")
    if "latency" not in kinds and state.timers:
        state.timers.close()  # else capacity would share its pages with these processes
    if reporter and kinds and _group_key(item) not in map(_group_key, later):
        _show_group(item, kinds)


def _show_group(item: pytest.Item, kinds: list[str]) -> None:
    from rich.text import Text

    from qbert.results import end_of_run, tables

    state, params = _state(item.config), item.callspec.params  # type: ignore[attr-defined]  # of a pytest.Function
    of_group = [
        result
        for result in state.results.values()
        if all(result["extra_info"][name] == params[name] for name in ("model", "max_length"))
    ]
    if not of_group:
        return
    item.config.pluginmanager.getplugin("terminalreporter").ensure_newline()
    tables.show(end_of_run.group_table(of_group))
    tables.show(Text(f"\n{end_of_run.left(kinds, state.seconds)}", style="dim"))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401  pytest-xdist's
    """Set the error where a worker of pytest-xdist has cells to time."""
    if getattr(node, "workeroutput", {}).get(PARALLEL):
        _state(
            node.config
        ).mistake = (
            "the cells are timed, and what runs beside them would be, too: leave out pytest-xdist's -n (or give -n 0)"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark saves and compares
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """Compare this run with the previous ones, and do not save a run that failed."""
    benchmarks = session.config.pluginmanager.getplugin("pytest-benchmark")
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    state = _state(session.config)
    if benchmarks and reporter and state.suite and not session.config.option.collectonly:
        from qbert.results import previous

        last = {benchmark.fullname: benchmark for benchmark in benchmarks.benchmarks}  # of --reruns
        for report in reporter.stats.get("skipped", []):  # after it was timed: it has no figures
            last.pop(report.nodeid, None)
        last.pop(state.running, None)  # a test that was interrupted
        benchmarks.benchmarks[:] = last.values()
        completed = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}
        state.is_part = exitstatus == pytest.ExitCode.INTERRUPTED and bool(last)
        state.failed = [report.nodeid for kind in ("failed", "error") for report in reporter.stats.get(kind, [])]
        state.compared, failed = previous.finish(
            benchmarks, state.previous, whole=completed, max_drop=settings_of(session.config).max_drop
        )
        state.failed += failed
        if failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if state.failed or not (completed or state.is_part):
            state.compared += previous.leave_unsaved(benchmarks)
        elif state.is_part:
            from qbert.system.terminal import counted

            state.compared.append(f"this run was interrupted: it has {counted(len(last), 'whole cell')}")
    result = yield
    if state.mistake and reporter and not state.suite:  # set by pytest_testnodedown
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Save what failed, and the boot of the machine during which this run was made."""
    state = _state(config)
    if state.suite:
        from qbert.system import machine

        output_json["qbert"] = {"failed": state.failed, "part": state.is_part, "boot": machine.boot()}


def _shown(text: str) -> str:
    from qbert.system.terminal import shown

    return shown(text)


def failed(why: str) -> BaseException:
    """Return the exception that fails a test with the sentence `why`."""
    return pytest.fail.Exception(why, pytrace=False)


@contextlib.contextmanager
def in_a_sentence(cannot: Callable[[str], BaseException] = failed) -> Iterator[None]:
    """Turn an exception in the block into a failure with one sentence and no traceback.

    Where the variant cannot run the model, raise what `cannot` returns for the sentence.
    """
    try:
        yield
    except Exception as error:  # of any class: nothing above catches it
        if os.environ.get(TRACEBACK):
            raise
        exception = cannot if isinstance(error, CannotRunError) else failed
        raise exception(_shown(sentence(error))) from None


@pytest.fixture(scope="session")
def qbert_suite(pytestconfig: pytest.Config) -> "Suite":
    """Return the session's suite: dataset, models and maximum lengths."""
    return suite_of(pytestconfig)


@pytest.fixture(scope="session")
def qbert_settings(pytestconfig: pytest.Config) -> "Settings":
    """Return the session's settings: from the command line, `[tool.qbert]`, or the defaults."""
    return settings_of(pytestconfig)


@pytest.fixture
def qbert_named(qbert_settings: "Settings", variant: str) -> bool:
    """Whether the variant was named, not only included by 'default' or 'all'."""
    from qbert import variants

    return variant in variants.named(qbert_settings.variant_list)


@pytest.fixture
def qbert_attempt(
    pytestconfig: pytest.Config, model: str, max_length: int, variant: str, *, qbert_named: bool
) -> Callable[[], AbstractContextManager[None]]:
    """Return the context for what the variant may be unable to do; unless it was named, that skips the test."""
    from qbert.variants import BASELINE

    def left_out(why: str) -> BaseException:
        _state(pytestconfig).cannot.setdefault(f"{model}-{max_length}-{variant}", why)
        return pytest.skip.Exception(why)

    return lambda: in_a_sentence(failed if qbert_named or variant == BASELINE else left_out)


@pytest.fixture
def cell(
    request: pytest.FixtureRequest,
    qbert_suite: "Suite",
    model: str,
    max_length: int,
    variant: str,
    qbert_attempt: Callable[[], AbstractContextManager[None]],
) -> "Cell":
    """One model, maximum length and variant, built; or, for another process, prepared to be built there."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    qbert_suite.drop_all_but(variant)
    own_process = request.node.get_closest_marker("own_process")
    with capture.global_and_fixture_disabled():  # so that the progress of a training is shown
        with in_a_sentence():
            built = qbert_suite.cell(model, max_length, variant)
            qbert_suite.make([built, *_group(request.node, built)])
            _ = built.checkpoint if own_process else built.baseline
        with qbert_attempt():
            _ = built.folder if own_process else built.classifier
    return built


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Keep a cell's figures for the table."""
    funcargs = getattr(item, "funcargs", {})
    benchmark: Any = funcargs.get("benchmark")
    is_ours = "qbert_suite" in funcargs and benchmark and "measured" in benchmark.extra_info
    if is_ours and benchmark.stats and not benchmark.has_error:
        _state(item.config).results[benchmark.fullname] = benchmark.stats.as_dict(include_data=False)


@pytest.fixture(scope="session")
def qbert_timers(pytestconfig: pytest.Config) -> "Iterator[Timers]":
    """Yield the processes that time latency; they end with the session."""
    from qbert.measure.latency import Timers

    with contextlib.closing(Timers()) as started:
        _state(pytestconfig).timers = started
        yield started


@pytest.fixture
def qbert_time(request: pytest.FixtureRequest, qbert_timers: "Timers") -> "Callable[[Cell], Timed]":
    """Return the function that times a cell, by turns with what the session will time of its model and length."""
    options, capture = request.config.option, request.config.pluginmanager.getplugin("capturemanager")

    def time(cell: "Cell") -> "Timed":
        from qbert import variants
        from qbert.system.terminal import progress

        selected = variants.select(settings_of(request.config).variant_list)
        with capture.global_and_fixture_disabled():
            qbert_timers.start(module for variant in selected for module in variant.modules)
            group = [one for one in _group(request.node, cell) if _is_prepared(one)]
            with progress(f"timing {cell.model.name}-{cell.max_length}", 100) as advance:
                return qbert_timers.time(
                    cell,
                    seconds=options.qbert_seconds_per_cell,
                    min_rounds=options.benchmark_min_rounds,
                    group=group,
                    advance=advance,
                )

    return time


def _group(item: pytest.Function, cell: "Cell") -> "Iterator[Cell]":
    """Yield the cells of the session's tests that differ from `item`, that of `cell`, in nothing but the variant."""
    from qbert import variants

    for other in item.session.items:
        if isinstance(other, pytest.Function) and (other.path, other.originalname) == (item.path, item.originalname):
            params = other.callspec.params
            if (params["model"], params["max_length"]) == (cell.model.name, cell.max_length):
                yield replace(cell, variant=variants.get(str(params["variant"])))


def _is_prepared(cell: "Cell") -> bool:
    """Whether `cell` can be built, or was; if not, its own test tells why."""
    try:
        _ = cell.folder
    except Exception:  # noqa: BLE001  of any class, as in_a_sentence
        return False
    return True


@pytest.fixture(scope="session")
def qbert_documents(pytestconfig: pytest.Config, qbert_suite: "Suite") -> "pd.DataFrame":
    """Return the test documents on which the variants are judged."""
    with in_a_sentence():
        return qbert_suite.dataset.documents(pytestconfig.option.qbert_documents)


@pytest.fixture(scope="session")
def qbert_load(pytestconfig: pytest.Config, qbert_suite: "Suite") -> "Load":
    """Return what the workers of the capacity cells serve."""
    from qbert.inputs import dataset
    from qbert.measure.capacity import Load

    options = pytestconfig.option
    with in_a_sentence():
        file = options.qbert_traffic and Path(options.qbert_traffic)
        rows = (
            dataset.traffic(file) if file else dataset.text_rows(qbert_suite.dataset.documents(options.qbert_documents))
        )
        return Load(
            rows,
            f"texts of {file.name if file else qbert_suite.dataset.name}",
            workers=options.qbert_workers or (),
            seconds=options.qbert_seconds_per_cell,
            latency_limit_s=options.qbert_latency_limit / 1e3,
            price_per_hour=settings_of(pytestconfig).price_per_hour,
            min_rounds=options.benchmark_min_rounds,
        )


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """Print the table of the cells at the end, then what was left out or is worse than in the previous run."""
    state = _state(config)
    benchmarks = config.pluginmanager.getplugin("pytest-benchmark")
    if benchmarks and state.suite:
        benchmarks.performance_regressions.clear()  # printed below; pytest-benchmark would raise for them
    try:
        yield
    finally:  # pytest-benchmark may raise here, for example if it cannot write a histogram
        if state.suite:
            _summarize(terminalreporter, config, state)
        elif state.mistake:
            terminalreporter.write_line(f"ERROR: {state.mistake}", red=True)


def _summarize(reporter: pytest.TerminalReporter, config: pytest.Config, state: State) -> None:
    from rich.text import Text

    from qbert.results import end_of_run, tables

    assert state.suite is not None  # noqa: S101  the caller checked
    results, strict = list(state.results.values()), config.option.qbert_strict_guard
    if results:
        reporter.write_line("")
        tables.show(end_of_run.table(results, state.suite.dataset.name))
    if lines := end_of_run.notes([] if strict else results, state.cannot):
        tables.show(Text("\n".join(["", *lines]), style="yellow"))
    if state.compared:
        reporter.section("this run and the previous one")
        for line in state.compared:
            reporter.write_line(line, red=True)
