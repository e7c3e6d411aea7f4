"""The table [tool.qbert]: what is read, whose word counts, and what a person is told of a wrong one."""

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from qbert import variants
from qbert.cli import main
from qbert.cli.options import lengths
from qbert.gate import sides
from qbert.inputs import settings
from qbert.inputs.options import OPTIONS, counts
from qbert.inputs.settings import DEFAULTS, Settings
from qbert.system.errors import InputError


@pytest.fixture
def pyproject(tmp_path: Path) -> Path:
    return tmp_path / "pyproject.toml"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool", "is no TOML"),
        ("tool = 3", "Expected `object`, got `int`"),
        ("[tool.qbert]\nmodel = 'x'", "unknown field `model`"),
        ("[tool.qbert]\nmax_lengths = ['a']", "Expected `int`, got `str` - at `$.max_lengths[0]`"),
        ("[tool.qbert]\nmodels = []", "`$.models`"),
        ("[tool.qbert]\nmax_lengths = []", "`$.max_lengths`"),
        ("[tool.qbert]\nmax_lengths = [0]", "`$.max_lengths[0]`"),
        ("[tool.qbert]\nf1_guard = 'both'", "`$.f1_guard`"),
        ("[tool.qbert]\nmax_f1_drop = 2", "`$.max_f1_drop`"),
        ("[tool.qbert]\nplugins = 'mine'", "Expected `array`, got `str` - at `$.plugins`"),
        ("[tool.qbert.gate]\nlimit = 3", "unknown field `limit`"),
        ("[tool.qbert.gate]\nlimits = 3", "Expected `array`, got `int` - at `$.gate.limits`"),
        ("[[tool.qbert.gate.limits]]\nmax_disk = 3", "unknown field `max_disk`"),
        (
            "[[tool.qbert.gate.limits]]\nmax_disk_mb = '3'",
            "got `str` - at `$.gate.limits[0].max_disk_mb`",
        ),
        ("[[tool.qbert.gate.limits]]\nmax_length = true", "Expected `int | null`, got `bool`"),
        ("[[tool.qbert.gate.limits]]\nmax_latency_ms = nan", "`$.gate.limits[0].max_latency_ms`"),
        ("[[tool.qbert.gate.limits]]\nmax_memory_mb = inf", "`$.gate.limits[0].max_memory_mb`"),
        ("[tool.qbert]\nprice_per_hour = nan", "`$.price_per_hour`"),
        ("[tool.qbert]\nprice_per_hour = 0", "`$.price_per_hour`"),
        ("[[tool.qbert.gate.limits]]\nmax_disk_mb = nan", "`$.gate.limits[0].max_disk_mb`"),
        ("[[tool.qbert.gate.limits]]\nmax_latency_ms = -1", "`$.gate.limits[0].max_latency_ms`"),
        ("[[tool.qbert.gate.limits]]\nmin_texts_per_s = 40", "unknown field `min_texts_per_s`"),
        ("[[tool.qbert.gate.limits]]\nmax_f1_drop = 2", "`$.gate.limits[0].max_f1_drop`"),
    ],
)
def test_a_wrong_table_is_named_with_file_and_key(pyproject: Path, text: str, told: str) -> None:
    pyproject.write_text(text)
    with pytest.raises(InputError) as caught:
        settings.read(pyproject)
    assert str(pyproject) in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_cover_what_their_patterns_say(pyproject: Path) -> None:
    pyproject.write_text('[[tool.qbert.gate.limits]]\nvariant = "int8-*"\nmax_length = 128\nmax_latency_ms = 5\n')
    (limit,) = settings.read(pyproject).gate.limits
    assert limit.max_latency_ms == 5
    assert limit.covers("any", 128, "int8-dynamic")
    assert not limit.covers("any", 256, "int8-dynamic")
    assert not limit.covers("any", 128, "fp32")


@pytest.mark.parametrize("text", [None, "", "[tool.other]\nx = 1\n", "[tool.qbert]\n"])
def test_where_nothing_is_said_the_defaults_hold(pyproject: Path, text: str | None) -> None:
    if text is not None:
        pyproject.write_text(text)
    assert settings.read(pyproject) == DEFAULTS


def test_the_command_line_beats_the_table_and_the_table_beats_the_defaults(pyproject: Path) -> None:
    pyproject.write_text('[tool.qbert]\nmodels = "bert-mini"\nmax_lengths = [8]\nvariants = ["fp32", "int8-dynamic"]\n')
    found = settings.read(pyproject)
    assert found.models == ("bert-mini",)
    assert found.variant_list == "fp32,int8-dynamic"
    assert found.dataset == DEFAULTS.dataset
    told = found.but(models=("bert-tiny",), max_lengths=None, dataset="ours")
    assert (told.models, told.max_lengths, told.dataset) == (("bert-tiny",), (8,), "ours")


def test_folders_are_named_from_where_the_file_lies(pyproject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pyproject.parent / "models" / "one").mkdir(parents=True)
    (pyproject.parent / "bert-tiny").mkdir()  # the built-in one is meant
    pyproject.write_text('[tool.qbert]\nmodels = ["models/one", "bert-tiny", "hub/id"]\ndataset = "models"\n')
    below = pyproject.parent / "models"
    monkeypatch.chdir(below)
    found = settings.read(settings.nearest(Path.cwd()))
    assert found.models == (str(below / "one"), "bert-tiny", "hub/id")
    assert found.dataset == str(below)


def test_a_plugin_lies_beside_the_file(pyproject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (pyproject.parent / "beside_the_file.py").write_text("NAME = 1\n")
    pyproject.write_text('[tool.qbert]\nplugins = ["beside_the_file"]\n')
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    below = pyproject.parent / "below"
    below.mkdir()
    assert settings.here(below).plugins == ("beside_the_file",)
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(pyproject.parent), "elsewhere"])
    assert str(pyproject.parent) in sides.module_path(None)  # where the gate's processes find it
    pyproject.write_text('[tool.qbert]\nplugins = ["no_such_module"]\n')
    with pytest.raises(InputError, match=r"pyproject.toml: \[tool.qbert\] plugins: no_such_module cannot be imported"):
        settings.here(below)


@pytest.mark.parametrize("command", ["evaluate", "quantize --variant fp32 --output out"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "name a model: --model, or models in pyproject.toml, [tool.qbert]"),
        ('models = ["bert-mini", "bert-tiny"]', "[tool.qbert] names 2 models, bert-mini, bert-tiny: give --model"),
        ('models = ["nowhere/at/all"]', "model 'nowhere/at/all' is no folder here"),
        ("f1_guard = 1", "[tool.qbert] cannot be used"),
    ],
)
def test_commands_of_one_model_take_it_from_the_table(
    pyproject: Path, monkeypatch: pytest.MonkeyPatch, command: str, text: str, told: str
) -> None:
    pyproject.write_text(f"[tool.qbert]\n{text}\n")
    monkeypatch.chdir(pyproject.parent)
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


def test_an_option_and_its_key_have_one_default() -> None:
    keys = {option.key: option.default for option in OPTIONS.values() if option.key}
    assert {key: getattr(DEFAULTS, key) for key in keys} == keys


BLANK = st.text(" \t", max_size=2)


@given(st.lists(st.tuples(BLANK, st.sampled_from(["fp32", "bf16", "int8-x", "default"]), BLANK), min_size=1))
def test_blanks_around_the_names_of_a_list_are_no_part_of_them(parts: list[tuple[str, str, str]]) -> None:
    names, spaced = [name for _, name, _ in parts], ["".join(part) for part in parts]
    for given_variants in (",".join(spaced), tuple(spaced)):
        text = Settings(variants=given_variants).variant_list
        assert variants.listed(text) == names
        assert variants.named(text) == set(names) - {"default"}


@given(st.lists(st.tuples(BLANK, st.integers(1, 512), BLANK), min_size=1))
def test_lengths_are_read_alike_by_pytest_and_by_the_commands(parts: list[tuple[str, int, str]]) -> None:
    text = ",".join(f"{before}{number}{after}" for before, number, after in parts)
    expected = tuple(dict.fromkeys(number for _, number, _ in parts))
    assert lengths(text) == counts(text) == expected
