"""Each kernel of int8-native computes the same, by its instructions or, where they are missing, by plain C++."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from native_cases import Emulated, text, weights, write

from qbert.system import machine
from qbert.system.errors import InputError
from qbert.variants import VARIANTS, native
from qbert.variants.native import compiler
from qbert.variants.native.compiler import TWIN
from qbert.variants.native.encoder import Encoder, Geometry
from qbert.variants.native.targets import FLAGS, KERNELS, SOURCES, WIDE, Kernel, chosen

pytestmark = pytest.mark.skipif(not compiler.compiler(), reason="the kernels need a C++ compiler")

TESTS = Path(__file__).with_name("test_native.py")
SANITIZED = (
    "-fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O0"  # compiles in an eighth of the time that -O1 takes
)
names = [kernel.name for kernel in KERNELS]


def runs_here(kernel: Kernel) -> bool:
    return kernel.needs <= set(machine.instruction_sets())


def again(kernel: Kernel, flags: str, **environment: str) -> None:
    """Run the encoder's tests with `kernel`, or with its twin where this processor lacks it, in a new process."""
    tests = "reference or extreme or thousandth or alone_to_the_bit"
    if not environment.get("QBERT_EMULATED"):
        tests += " or both_precisions or before_it or padding or know or damaged"
    if not runs_here(kernel):
        flags += f" -O0 {TWIN}"
    options = ("-q", "-n0", "-pno:cacheprovider", "--noconftest")  # what that has needs torch, and they do not
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS), "-k", tests],
        env=os.environ
        | {"QBERT_CXXFLAGS": flags, "QBERT_ISA": kernel.name, "QBERT_TEST_EXAMPLES": "15" if flags else "60"}
        | environment,
        cwd=TESTS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@cache
def sanitizers() -> str:
    """What a process loads first whose library was compiled with SANITIZED; empty where this compiler has none."""
    libraries = [
        subprocess.run(
            [*compiler.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return " ".join(libraries) if all(Path(library).is_absolute() for library in libraries) else ""


either_width = pytest.mark.parametrize("width", ["", WIDE], ids=["halves", "floats"])


ALSO_FLOATS = ("amx", "avx512_vnni", "avx2", "neon_i8mm")  # of kernels that share most of a file, one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "width"),
    [(kernel, width) for kernel in KERNELS for width in ("", WIDE) if not width or kernel.name in ALSO_FLOATS],
    ids=lambda value: value.name if isinstance(value, Kernel) else "floats" if value else "halves",
)
def test_each_kernel_computes_what_the_reference_does_and_sanitizers_find_nothing(kernel: Kernel, width: str) -> None:
    loaded = {"LD_PRELOAD": sanitizers(), "ASAN_OPTIONS": "detect_leaks=0"} if sanitizers() else {}
    again(kernel, f"{width} {SANITIZED if loaded else ''}".strip(), **loaded)


@pytest.mark.slow
@either_width
@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_each_kernel_as_it_is_shipped_computes_what_the_reference_does(kernel: Kernel, width: str) -> None:
    if not runs_here(kernel):
        pytest.skip(f"this processor does not have {kernel.name}")
    again(kernel, width)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is remembered of the library."""
    compiler.load_library.cache_clear()
    yield monkeypatch
    compiler.load_library.cache_clear()


def samples() -> Iterator[tuple[Geometry, dict[str, np.ndarray], list[str]]]:
    """Some sizes, of which few fill vectors, and the products that are kept: none, and all or some."""
    for seed, (hidden, heads, intermediate) in enumerate([(64, 2, 128), (52, 2, 100), (96, 3, 40), (80, 1, 304)]):
        geometry = Geometry(40, hidden, 2, 150, hidden, heads, 2, intermediate, 3, seed % 3, 0, -1, 1e-12)
        for kept in ([], [*geometry.products()][:: seed + 1]):
            yield geometry, weights(geometry, seed, kept=kept), kept


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_plain_code_and_instructions_agree_to_the_bit(
    kernel: Kernel, fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not runs_here(kernel):
        pytest.skip(f"this processor does not have {kernel.name}")
    for geometry, tensors, kept in samples():
        path = write(tmp_path, geometry, tensors, kept)
        logits = {}
        for flags in ("", TWIN):
            fresh.setenv("QBERT_CXXFLAGS", flags)
            compiler.load_library.cache_clear()
            encoder = Encoder(path, kernel.name)
            logits[flags] = [encoder(text(geometry, tokens, tokens)) for tokens in (1, 2, 16, 33, 70, 150)]
        assert np.array_equal(*logits.values())


CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
on_arm = pytest.mark.skipif(
    not (shutil.which(CROSS_COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {CROSS_COMPILER} and {EMULATOR}: apt install g++-aarch64-linux-gnu qemu-user",
)
PROCESSORS = {"neon_i8mm": "max", "neon_dotprod": "neoverse-n1"}
"""What is emulated: the newest that the emulator knows, and one without i8mm."""


@pytest.fixture(scope="session")
def built_for_arm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What compiles native_case.cpp with a kernel, and returns the command that runs it under emulation."""
    folder = tmp_path_factory.mktemp("arm")
    source = TESTS.parents[2] / "tools/native_case.cpp"

    @cache
    def built(kernel: Kernel, *flags: str) -> str:
        program = folder / "_".join([kernel.name, *flags])
        own = [flag for flag in (*FLAGS, *kernel.flags, *chosen(kernel)) if flag != "-shared"]
        command = [CROSS_COMPILER, *own, *flags, "-static", f"-I{SOURCES}", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        return f"{EMULATOR} -cpu {PROCESSORS[kernel.name]} {program}"

    return built


@on_arm
@pytest.mark.slow
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.name in PROCESSORS], ids=[*PROCESSORS])
def test_under_emulation_arm_computes_what_the_reference_does(
    kernel: Kernel, built_for_arm: Callable[..., str]
) -> None:
    again(kernel, "-O0", QBERT_EMULATED=built_for_arm(kernel))
    again(kernel, "-O0", QBERT_EMULATED=built_for_arm(kernel, WIDE))


@on_arm
@pytest.mark.slow
def test_the_emulated_processor_without_i8mm_has_none(built_for_arm: Callable[..., str], tmp_path: Path) -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.name == "neon_i8mm")
    command = built_for_arm(kernel).replace(PROCESSORS["neon_i8mm"], PROCESSORS["neon_dotprod"])
    geometry, tensors, _ = next(samples())
    with pytest.raises(subprocess.CalledProcessError) as error:
        Emulated(shlex.split(command), tmp_path / "case", geometry, tensors)(text(geometry, 2, 0))
    assert -error.value.returncode == signal.SIGILL


LOGITS = """
import sys
from pathlib import Path
from native_cases import text
from qbert.variants.native.encoder import Encoder
for name in sys.argv[2:]:
    encoder = Encoder(Path(sys.argv[1]), name)
    print(encoder(text(encoder.geometry, 40, 0)).tobytes().hex())
"""


@pytest.mark.slow
def test_kernels_in_one_process_do_not_mix(tmp_path: Path) -> None:
    geometry = Geometry(40, 64, 2, 150, 64, 2, 2, 128, 3, 0, 0, -1, 1e-12)
    kept = ["layers.0.up", "layers.1.query"]
    path = write(tmp_path, geometry, weights(geometry, 0, kept=kept), kept)

    def logits(*kernels: str) -> list[str]:
        command = [sys.executable, "-c", LOGITS, str(path), *kernels]
        environment = os.environ | {"PYTHONPATH": str(TESTS.parents[2] / "tools")}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    here = [kernel.name for kernel in KERNELS if runs_here(kernel)]
    alone = [line for name in here for line in logits(name)]
    assert logits(*here) == alone
    assert logits(*reversed(here)) == alone[::-1]


@pytest.mark.parametrize("kernel", KERNELS, ids=names)
def test_no_kernel_is_loaded_without_its_instructions(kernel: Kernel, fresh: pytest.MonkeyPatch) -> None:
    all_but_one: Callable[[], tuple[str, ...]]
    for lacking in kernel.needs:
        all_but_one = lambda lacking=lacking: tuple(  # noqa: E731
            sorted(set().union(*(other.needs for other in KERNELS)) - {lacking})
        )
        fresh.setattr(machine, "instruction_sets", all_but_one)
        assert kernel not in compiler.kernels()
        assert native.unsupported(kernel.name) == f"this processor does not have {kernel.name}"
        with pytest.raises(InputError, match=f"cannot be made here: this processor does not have {kernel.name}"):
            compiler.load_library(kernel.name)


def test_the_fastest_kernel_runs_unless_another_is_asked_for(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(machine, "instruction_sets", lambda: tuple(set().union(*(kernel.needs for kernel in KERNELS))))
    assert [kernel.name for kernel in compiler.kernels()] == names
    fresh.setenv("QBERT_ISA", "avx512_vnni")
    assert [kernel.name for kernel in compiler.kernels()] == ["avx512_vnni"]
    assert [kernel.name for kernel in compiler.kernels("amx")] == ["amx"]
    fresh.setenv("QBERT_ISA", "sse9")
    with pytest.raises(
        InputError, match=r"QBERT_ISA=sse9 is none of amx, avx512_bf16, avx512_vnni, avx_vnni, avx2, neon"
    ):
        compiler.kernels()


REFUSE_TILES = """
import ctypes, struct
load, equal, end = 0x20, 0x15, 0x06
program = [  # a seccomp filter: arch_prctl (158) that requests a feature (0x1023) fails
    (load, 0, 0, 0), (equal, 0, 3, 158), (load, 0, 0, 16), (equal, 0, 1, 0x1023), (end, 0, 0, 0x50001),
    (end, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
prctl = ctypes.CDLL(None).prctl
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, filter) == 0
from qbert.system.errors import InputError
from qbert.variants.native.compiler import load_library
print(load_library().qbert_instructions().decode())
try:
    load_library("amx")
except InputError as error:
    print(error)
"""


def test_a_system_that_refuses_tiles_gets_the_next_kernel() -> None:
    if [kernel.name for kernel in compiler.kernels()][:1] != ["amx"]:
        pytest.skip("this processor has no tiles")
    done = subprocess.run([sys.executable, "-c", REFUSE_TILES], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "avx512_vnni avx512_bf16",
        "this system does not let a process use amx: set QBERT_ISA to a lesser one",
    ]


def test_variants_by_name_run_side_by_side() -> None:
    for row in (row for row in VARIANTS.values() if "kernel" in row.options):
        assert row.options["kernel"] in names
        assert bool(row.unsupported()) == bool(native.unsupported(row.options["kernel"]))
