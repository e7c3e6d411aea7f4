"""Builds a wheel for each platform, with int8-native's library for each kernel: `python tools/wheels.py FOLDER`.

It takes the packages build, twine and auditwheel, and some minutes. For hatchling this file is a build hook: where the
environment variable QBERT_PLATFORM names one of PLATFORMS, it compiles the libraries with ziglang, for any platform on
any machine; else the wheel has none, and int8-native is compiled at first use.
"""

import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "QBERT_PLATFORM"
ZIG = "ziglang==0.17.1"
PLACE = "qbert/variants/native"
X86 = ("amx", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2")
ARM = ("neon_i8mm", "neon_dotprod")
SOURCE_ORDER = ("-mllvm", "-enable-misched=0")
"""Clang 22 reorders loops that need all 16 registers of AVX2 so that they need more: 16 % at 384 tokens."""


class Platform(NamedTuple):
    """What a wheel is for."""

    target: str
    """Its name to Zig, with the oldest version of the C library."""
    kernels: tuple[str, ...]
    suffix: str = ".so"


PLATFORMS = {
    "manylinux_2_17_x86_64": Platform("x86_64-linux-gnu.2.17", X86),
    "manylinux_2_17_aarch64": Platform("aarch64-linux-gnu.2.17", ARM),
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0", ARM, ".dylib"),
    # No Mac has had AMX, AVX-VNNI or AVX512-BF16.
    "macosx_11_0_x86_64": Platform("x86_64-macos.11.0", ("avx512_vnni", "avx2"), ".dylib"),
}
"""By the tags of wheels."""


class WheelHook(BuildHookInterface[Any]):
    """Adds the libraries of a platform to its wheel."""

    def dependencies(self) -> list[str]:
        """Return what a wheel with libraries needs to be built."""
        return [ZIG] if os.environ.get(VARIABLE) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries, unless QBERT_PLATFORM names no platform or the clone is installed as it is."""
        name = os.environ.get(VARIABLE)
        if not name or version == "editable":
            return
        platform = PLATFORMS[name]
        folder = Path(self.root) / "build" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in compiled(platform, folder):
            build_data["force_include"][str(file)] = f"{PLACE}/libraries/{file.name}"
        build_data["tag"] = f"py3-none-{name}"
        build_data["pure_python"] = False


def compiled(platform: Platform, folder: Path) -> list[Path]:
    """Return the libraries of `platform`, compiled into `folder` by a process on each core."""
    targets = _targets()
    if unknown := {kernel.name for kernel in targets.KERNELS} ^ {*X86, *ARM}:
        sys.exit(f"tools/wheels.py and targets.py do not know the same kernels: {unknown}")
    jobs = [(kernel, wide) for kernel in targets.KERNELS if kernel.name in platform.kernels for wide in (False, True)]

    def compile_one(kernel: Any, wide: bool) -> Path:  # noqa: FBT001  targets.Kernel
        file = folder / targets.shipped(kernel, wide=wide, suffix=platform.suffix).name
        begin = time.monotonic()
        _compile(targets, platform, kernel, wide=wide, file=file)
        print(f"{file.name} for {platform.target}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        return file

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_one(*job), jobs))


def _compile(targets: Any, platform: Platform, kernel: Any, *, wide: bool, file: Path) -> None:
    instructions = [*targets.AVX2, *kernel.flags]
    if kernel.name in ARM:  # Zig has processors with features in place of -march
        instructions = [f"-mcpu=baseline+{kernel.flags[0].partition('+')[2]}"]
    elif kernel.name in {"avx2", "avx_vnni"}:
        instructions += SOURCE_ORDER
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", platform.target]
    flags = [flag for flag in targets.FLAGS if flag != "-shared"]
    source = [*targets.chosen(kernel, wide=wide), "-c", str(targets.SOURCES / "native.cpp")]
    part = file.with_suffix(".o")
    subprocess.run([*compiler, *flags, *instructions, *source, "-o", str(part)], check=True)
    # Linked without the instructions: for each set of these, Zig would compile its C++ library anew, in 100 s.
    subprocess.run([*compiler, "-shared", str(part), "-s", "-o", str(file)], check=True)


def _targets() -> Any:
    """Return the module of kernels and flags, without what its package imports."""
    spec = importlib.util.spec_from_file_location("targets", ROOT / PLACE / "targets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(name: str) -> set[str]:
    """Return the libraries that the wheel of the platform `name` has to bring."""
    platform = PLATFORMS[name]
    files = (f"{kernel}{wide}{platform.suffix}" for kernel in platform.kernels for wide in ("", "-wide"))
    return {f"{PLACE}/libraries/{file}" for file in files}


def main(folder: Path) -> None:
    """Build the sdist and the wheels into `folder`, and check them."""
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: name another folder")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run([*build, "--sdist"], check=True)
    for name in PLATFORMS:
        subprocess.run([*build, "--wheel"], check=True, env=os.environ | {VARIABLE: name})
        (wheel,) = folder.glob(f"*{name}.whl")
        brought = {file for file in zipfile.ZipFile(wheel).namelist() if "/libraries/" in file}
        if brought != expected(name):
            sys.exit(f"{wheel} brings {sorted(brought ^ expected(name))} too many or too few")
        if name.startswith("manylinux"):
            audit = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
            found = subprocess.run(audit, check=True, capture_output=True, text=True).stdout
            if f'platform tag: "{name}"' not in " ".join(found.split()):
                sys.exit(f"{wheel} is no {name}: {found}")
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.glob("pytest_qbert-*"))], check=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
