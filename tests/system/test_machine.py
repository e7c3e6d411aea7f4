"""What is said of this processor is what the system says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qbert.system import machine


def test_a_macs_intel_processor_names_its_instruction_sets() -> None:
    lines = "hw.optional.avx2_0: 1\nmachdep.cpu.features: FPU FMA\nmachdep.cpu.leaf7_features: AVX2 AVX512F AVX512VNNI"
    found = {machine.INSTRUCTION_SETS.get(flag) for flag in machine.intel_mac_flags(lines)}
    assert found - {None} == {"avx2", "avx512f", "avx512_vnni"}
    assert machine.intel_mac_flags("hw.optional.arm.FEAT_I8MM: 1") == []


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux's")
def test_memory_that_is_available_is_some_of_the_machines() -> None:
    assert 1 << 20 < machine.available_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_what_linux_tells_a_process_on_arm_names_its_instruction_sets() -> None:
    assert machine.arm_sets(0x119FFF, 0x0) == ["asimd", "asimddp"]  # a Neoverse N1
    assert machine.arm_sets(1 << 1, 1 << 13 | 1 << 14) == ["asimd", "i8mm", "bf16"]
    assert machine.arm_sets(0, 0) == []


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's list of flags")
def test_instruction_sets_are_the_processors() -> None:
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info()["flags"])
    assert set(machine.instruction_sets()) == {name for flag, name in machine.INSTRUCTION_SETS.items() if flag in flags}


def test_an_apple_processor_has_what_its_sysctl_says() -> None:
    said = """hw.optional.AdvSIMD: 1
hw.optional.arm.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_LSE: 1
"""
    assert {machine.INSTRUCTION_SETS.get(flag) for flag in machine.apple_flags(said)} == {"asimd", "asimddp", None}
    assert not machine.apple_flags("")


def test_versions_are_of_what_is_installed() -> None:
    import numpy as np

    found = machine.versions("pytest", "no-such-package")
    assert found["numpy"] == np.__version__
    assert found["pytest"] == pytest.__version__
    assert "no-such-package" not in found


@pytest.fixture
def cpuinfo_says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, int | str]]]:
    def hardware(text: str) -> dict[str, int | str]:
        monkeypatch.setattr(machine, "_read", lambda path: text if path == "/proc/cpuinfo" else "")
        monkeypatch.setattr(machine, "caches", lambda: {"L3 unified": "32M"})
        monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
        machine.hardware.cache_clear()
        return machine.hardware()

    yield hardware
    machine.hardware.cache_clear()


X86 = """processor\t: {}
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
physical id\t: 0
core id\t\t: {}
"""


def test_hardware_tells_processors_of_one_name_apart(cpuinfo_says: Callable[[str], dict[str, int | str]]) -> None:
    threads = "\n".join(X86.format(number, number // 2) for number in range(4))
    cores = {"logical cores": 4, "L3 unified": "32M"}
    assert cpuinfo_says(threads) == {"family": 25, "model": 17, "stepping": 1, "physical cores": 2} | cores
    arm = "processor\t: 0\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n"
    assert cpuinfo_says(arm) == {"family": 8, "model": 0xD0C, "stepping": 1} | cores


@pytest.mark.parametrize("text", ["", "cpu family\t: unknown\n", "\n\n\n"])
def test_elsewhere_hardware_is_what_py_cpuinfo_knows(
    cpuinfo_says: Callable[[str], dict[str, int | str]], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    import cpuinfo

    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: {"family": 6, "model": 167, "stepping": "?", "count": 2})
    assert cpuinfo_says(text) == {"family": 6, "model": 167, "logical cores": 4, "L3 unified": "32M"}


def test_the_hardware_is_part_of_the_identity() -> None:
    assert machine.identity()["hardware"] == machine.hardware()


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the system does not tell")
def test_a_boot_has_a_name() -> None:
    assert len(machine.boot()) == 36
    assert machine.boot() == machine.boot()


@pytest.mark.skipif(not Path("/sys/devices/system/cpu/cpu0/cache/index0").exists(), reason="the system does not tell")
def test_caches_are_named_by_level_and_kind() -> None:
    assert all(name[0] == "L" and size[-1] in "KM" for name, size in machine.caches().items())


def test_a_cache_whose_size_the_system_does_not_give_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "" if Path(path).name == "size" else "1")
    assert machine.caches() == {}


def test_what_disturbs_is_said_in_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
        "/sys/devices/system/cpu/smt/active": "1",
        "/sys/fs/cgroup/cpu.max": "150000 100000",
        "/proc/stat": "cpu  1 1 1 1 1 1 1 1 0 0",
    }
    monkeypatch.setattr(machine, "_read", lambda path: told.get(path, ""))
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    sentences = " ".join(machine.disturbances())
    assert all(word in sentences for word in ("powersave", "hyper-threads", "3.0 processes", "processor time"))
    assert "virtual machines" not in sentences  # the same ticks twice: none was stolen
    told |= dict.fromkeys(told, "")
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert machine.disturbances() == []


def test_stolen_time_is_the_share_of_the_ticks_between(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu  100 0 0 800 0 0 0 10 0 0", "cpu  150 0 0 840 0 0 0 20 0 0"])
    monkeypatch.setattr(machine, "_read", lambda _: next(lines))
    assert machine.stolen_share(0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"sys/devices/virtual/dmi/id": {"sys_vendor": "Amazon EC2\n", "product_name": "m7i.large\n"}}, "m7i.large"),
        ({"sys/devices/virtual/dmi/id": {"sys_vendor": "LENOVO", "product_name": "20XW"}}, ""),
        ({"run/cloud-init": {"instance-data.json": '{"ds": {"meta_data": {"instance-type": "c3-4"}}}'}}, "c3-4"),
        (
            {
                "run/cloud-init": {
                    "instance-data.json": '{"ds": {"meta_data": {"imds": {"compute": {"vmSize": "D2"}}}}}'
                }
            },
            "D2",
        ),
        ({"run/cloud-init": {"instance-data.json": '{"ds": {"meta_data": "redacted for non-root user"}}'}}, ""),
        ({"run/cloud-init": {"instance-data.json": "[1"}}, ""),
        ({}, ""),
    ],
)
def test_the_instance_type_is_what_a_file_of_the_cloud_says(
    tmp_path: Path, files: dict[str, dict[str, str]], told: str
) -> None:
    for folder, contents in files.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, text in contents.items():
            (tmp_path / folder / name).write_text(text)
    assert machine.instance_type(tmp_path) == told


@pytest.mark.slow
def test_the_command_says_all_of_it() -> None:
    done = subprocess.run([sys.executable, "-m", "qbert", "machine"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("processor", "instruction sets", "caches", "disturbs timing", "BERT-base's products", "int8", "GB/s"):
        assert word in done.stdout
    assert "tokens below which reading takes longer" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.dumps(machine.processor())[1:-1] in done.stdout
