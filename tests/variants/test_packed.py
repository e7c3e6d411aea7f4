"""Packed weights: mapped and shared where a file can be had, and never another answer where it is damaged."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qbert
from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.system import machine
from qbert.system.errors import InputError
from qbert.variants import VARIANTS, native
from qbert.variants.native import compiler, encoder
from qbert.variants.native.encoder import WEIGHTS, Encoder
from qbert.variants.native.packed import HEADER
from qbert.variants.native.targets import KERNELS, Kernel

pytestmark = pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")

ASK = """
import sys, qbert
classifier = qbert.load(sys.argv[1])
print(classifier("体育").scores)
print([line.split()[-1] for line in open("/proc/self/maps") if ".packed" in line][0])
"""


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return compiler.load_library().kernel


@pytest.fixture(scope="module")
def quantized(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "artefact"
    return qbert.quantize(trained.folder, "int8-native", folder)


@pytest.fixture
def artefact(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artefact without packed weights, and a cache that has only the compiled library."""
    cache = Path(os.environ["QBERT_CACHE"])
    compiler.load_library()
    shutil.copytree(cache / "native", tmp_path / "cache" / "native", ignore_dangling_symlinks=True)
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(quantized, tmp_path / "artefact"))


@pytest.fixture
def packed(trained: Checkpoint, kernel: Kernel, tmp_path: Path) -> Path:
    """An artefact with packed weights."""
    return qbert.quantize(trained.folder, "int8-native", tmp_path / "with", kernels=[kernel.name])


def scores(folder: Path, *, verify: bool = True) -> dict[str, float]:
    return qbert.load(folder, verify=verify)("体育新闻").scores


def where(folder: Path) -> str:
    return str(encoder.load(folder).evidence["weights"])


def in_the_cache(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "packed").rglob("*.packed")
    return file


def flip(path: Path, place: int) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond what the header of packed weights takes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * HEADER, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_first_load_packs_the_weights_once_and_answers_stay_the_same_to_the_bit(
    artefact: Path, tmp_path: Path, trained: Checkpoint
) -> None:
    in_memory = Encoder(artefact / WEIGHTS)
    assert in_memory.weights == "in memory"
    assert where(artefact) == "mapped from the cache"
    file = in_the_cache(tmp_path)
    before = file.stat().st_mtime_ns
    mapped = Encoder(artefact / WEIGHTS, share=True)
    assert file.stat().st_mtime_ns == before
    for text in ("体", "体育新闻" * 200, "球队" * 10):
        encoding = trained.encoder(text, max_length=64)
        assert np.array_equal(in_memory(encoding), mapped(encoding))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what a process has mapped")
def test_processes_map_one_file(artefact: Path, tmp_path: Path) -> None:
    said = [
        subprocess.run([sys.executable, "-c", ASK, artefact], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert said[0].splitlines()[1] == str(in_the_cache(tmp_path).resolve())


def test_an_artefact_may_bring_the_packed_weights(
    packed: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, quantized: Path
) -> None:
    assert f"{kernel.name}.packed" in (packed / "files.sha256").read_text()
    expected = scores(quantized)  # the library is loaded
    monkeypatch.setenv("QBERT_CACHE", "/dev/null/none")
    assert where(packed) == "mapped from the artefact"
    assert scores(packed) == expected


def test_where_no_cache_can_be_written_the_weights_are_in_memory(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scores(artefact)
    monkeypatch.setenv("QBERT_CACHE", "/dev/null/none")
    assert where(artefact).startswith("in memory: /dev/null")
    assert scores(artefact) == expected


def test_where_the_disk_is_full_the_weights_are_in_memory(artefact: Path, tmp_path: Path) -> None:
    with full_disk():
        said = where(artefact)
    assert said.startswith("in memory: ")
    assert "cannot be written (File too large)" in said
    assert not [*(tmp_path / "cache" / "packed").rglob("*.packed")]
    assert where(artefact) == "mapped from the cache"


@pytest.mark.parametrize("size", [rb"\"activation\": 0", rb"\"heads\": 2"])
def test_sizes_that_were_changed_after_the_weights_were_packed_are_refused(artefact: Path, size: bytes) -> None:
    scores(artefact)
    file = artefact / WEIGHTS
    before, content = file.stat(), file.read_bytes()
    assert content.count(size) == 1
    file.write_bytes(content.replace(size, size[:-1] + b"1"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="is damaged"):
        scores(artefact)


@pytest.mark.parametrize("fails", ["others can write it", "it is damaged", "it is damaged and the cache is closed"])
def test_damaged_weights_that_nobody_checked_are_refused_where_the_packed_ones_fail(
    artefact: Path, tmp_path: Path, fails: str
) -> None:
    scores(artefact)
    file, before = artefact / WEIGHTS, (artefact / WEIGHTS).stat()
    flip(file, -1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if fails == "others can write it":
        in_the_cache(tmp_path).chmod(0o666)
    else:
        flip(in_the_cache(tmp_path), HEADER + 1)
    if "closed" in fails:  # to root as well: no lock can be taken in it
        shutil.rmtree(tmp_path / "cache" / "locks")
        (tmp_path / "cache" / "locks").touch()
    with pytest.raises(InputError, match=rf"{WEIGHTS} is damaged"):
        scores(artefact)


@pytest.mark.usefixtures("artefact")  # for its cache
def test_what_the_first_load_makes_is_made_before_anything_is_measured(trained: Checkpoint, tmp_path: Path) -> None:
    folder = variants.prepare(VARIANTS["int8-native"], trained)
    file = in_the_cache(tmp_path)
    before = file.stat().st_mtime_ns
    assert where(folder) == "mapped from the cache"
    assert file.stat().st_mtime_ns == before


def test_kernels_named_twice_are_packed_once(trained: Checkpoint, kernel: Kernel, tmp_path: Path) -> None:
    folder = qbert.quantize(trained.folder, "int8-native", tmp_path / "twice", kernels=[kernel.name, kernel.name])
    assert len([*folder.glob("*.packed")]) == 1


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_what_others_can_write_is_not_mapped(artefact: Path, tmp_path: Path) -> None:
    expected = scores(artefact)
    in_the_cache(tmp_path).chmod(0o666)
    assert "others can write to it" in where(artefact)
    assert scores(artefact) == expected


@pytest.mark.parametrize("place", [0, HEADER // 2, HEADER, -1])
def test_a_damaged_file_of_the_cache_is_made_again(artefact: Path, tmp_path: Path, place: int) -> None:
    expected = scores(artefact)
    whole = in_the_cache(tmp_path).read_bytes()
    flip(in_the_cache(tmp_path), place)
    assert scores(artefact) == expected
    assert in_the_cache(tmp_path).read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, HEADER - 1, HEADER, HEADER + 64, -64])
def test_a_file_that_was_cut_gives_a_sentence_or_the_same_answer(packed: Path, kernel: Kernel, kept: int) -> None:
    expected = scores(packed)
    file = packed / f"{kernel.name}.packed"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"\.packed is damaged .*: make it again with qbert quantize"):
        scores(packed)
    try:
        assert scores(packed, verify=False) == expected
    except InputError as error:
        assert f"{file} is damaged" in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize("place", [0, HEADER, 3 * HEADER + 5, -1])
def test_a_changed_file_of_the_artefact_is_refused(packed: Path, kernel: Kernel, place: int) -> None:
    flip(packed / f"{kernel.name}.packed", place)
    with pytest.raises(InputError, match=r"\.packed is damaged \(its checksum"):
        scores(packed)


def test_weights_that_were_changed_after_they_were_packed_are_refused(artefact: Path) -> None:
    scores(artefact)
    flip(artefact / WEIGHTS, -1)
    with pytest.raises(InputError, match="is damaged"):
        scores(artefact)


def test_damaged_weights_are_not_packed(artefact: Path, tmp_path: Path) -> None:
    flip(artefact / WEIGHTS, -1)
    with pytest.raises(InputError, match="is damaged"):
        encoder.load(artefact)
    assert not [*(tmp_path / "cache" / "packed").rglob("*.packed")]


def test_a_file_of_another_kernel_is_not_used(artefact: Path, packed: Path, kernel: Kernel) -> None:
    other = next(one for one in KERNELS if one.name != kernel.name)
    file = packed / f"{kernel.name}.packed"
    content = file.read_bytes()
    try:
        native.pack(artefact, [other.name])
    except InputError:  # it takes a compiler
        pytest.skip("no compiler")
    file.chmod(0o644)
    file.write_bytes((artefact / f"{other.name}.packed").read_bytes())
    assert content != file.read_bytes()
    assert where(packed) == "mapped from the cache"


def test_what_is_mapped_stays_while_its_file_is_replaced(artefact: Path, tmp_path: Path, trained: Checkpoint) -> None:
    mapped = Encoder(artefact / WEIGHTS, share=True)
    encoding = trained.encoder("体育", max_length=64)
    expected = mapped(encoding)
    file = in_the_cache(tmp_path)
    (tmp_path / "new").write_bytes(bytes(file.stat().st_size))
    (tmp_path / "new").replace(file)
    assert np.array_equal(mapped(encoding), expected)


@pytest.mark.slow
def test_plain_code_packs_for_a_processor_what_its_own_kernel_packs(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [one for one in KERNELS if one.needs <= set(machine.instruction_sets())]
    packed: list[dict[str, bytes]] = []
    for name in ("own", "plain"):
        folder = Path(shutil.copytree(quantized, tmp_path / name))
        native.pack(folder, [one.name for one in here])
        packed.append({file.name: file.read_bytes() for file in folder.glob("*.packed")})
        monkeypatch.setattr(machine, "instruction_sets", tuple)
    assert packed[0] == packed[1]
    assert len(packed[0]) == len(here)


def test_only_kernels_of_ours_have_packed_weights(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant int8-dynamic-onednn has no kernels .*: leave out --for"):
        qbert.quantize(trained.folder, "int8-dynamic-onednn", tmp_path / "x", kernels=["avx2"])
    with pytest.raises(InputError, match=r"no kernel is called 'sse9' \(--for\): there are amx, avx512_bf16"):
        qbert.quantize(trained.folder, "int8-native", tmp_path / "x", kernels=["sse9"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("lengths", [(1, 64, 65, 2, 200, 64), (200, 1)])
def test_room_that_grew_for_a_longer_text_changes_no_answer(
    quantized: Path, lengths: tuple[int, ...], ask: Callable[..., np.ndarray]
) -> None:
    one = Encoder(quantized / WEIGHTS)
    for length in lengths:
        assert np.array_equal(ask(one, length), ask(Encoder(quantized / WEIGHTS), length))


@pytest.fixture
def ask(trained: Checkpoint) -> Callable[[Encoder, int], np.ndarray]:
    generator = np.random.default_rng(0)
    ids = generator.integers(5, trained.config.vocab_size, (1, 512))
    return lambda one, length: one({"input_ids": ids[:, :length], "attention_mask": np.ones((1, length), np.int64)})


def test_the_evidence_names_the_library_and_the_weights(artefact: Path) -> None:
    evidence = encoder.load(artefact).evidence
    assert evidence["library"].startswith("compiled here, ")
    assert VARIANTS["int8-native"].missing() == ""
