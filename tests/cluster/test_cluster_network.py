"""Workers in networks of their own: one is killed in the middle of a shard, one is cut off from the network."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Processes, client_of

from qbert import variants
from qbert.cluster import judging
from qbert.cluster import workers as cluster
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows

pytest.importorskip("distributed")
NET = "10.231.7"
NAMES = ("one", "other", "third")


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


def permitted() -> bool:
    """Whether this process may make network namespaces, bridges and pairs of virtual interfaces."""
    if shutil.which("ip") is None:
        return False
    try:
        ip("netns", "add", "qbert-try")
        ip("link", "add", "qbert-try", "type", "bridge")
    except subprocess.CalledProcessError:
        return False
    finally:
        ip("link", "del", "qbert-try", check=False)
        ip("netns", "del", "qbert-try", check=False)
    return True


@pytest.fixture
def networks() -> Iterator[None]:
    """Give each worker a namespace, behind a bridge at which the scheduler listens."""

    def remove() -> None:
        for name in NAMES:
            ip("netns", "del", f"qbert-{name}", check=False)
        ip("link", "del", "qbert-bridge", check=False)

    if not permitted():
        pytest.skip("network namespaces are not permitted here")
    remove()
    try:
        ip("link", "add", "qbert-bridge", "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", "qbert-bridge")
        ip("link", "set", "qbert-bridge", "up")
        for number, name in enumerate(NAMES, start=2):
            space = f"qbert-{name}"
            ip("netns", "add", space)
            ip("link", "add", f"qb{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", f"qb{number}", "master", "qbert-bridge", "up")
            ip("netns", "exec", space, "ip", "link", "set", "lo", "up")
            ip("netns", "exec", space, "ip", "link", "set", "eth0", "up")
            ip("netns", "exec", space, "ip", "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
        yield
    finally:
        remove()


@pytest.mark.slow
@pytest.mark.usefixtures("networks")
def test_a_killed_worker_and_one_without_network_change_nothing(
    tmp_path: Path, trained: Checkpoint, news: Dataset
) -> None:
    processes = Processes(tmp_path, host=f"{NET}.1")
    try:
        for number, name in enumerate(NAMES, start=2):
            space = ("ip", "netns", "exec", f"qbert-{name}")
            processes.add(name, f"--host={NET}.{number}", prefix=space)
        rows = text_rows(news.test) * 60
        with client_of(processes) as client:
            members = judging.Workers(client)
            job = members.job(variants.get("fp32"), trained, news, 64, rows[:5])
            whole, _, _ = members.judge(job, rows[:600])
            happened: list[int] = []

            def trouble(done: int) -> None:
                if not happened:
                    os.kill(processes.workers["one"].pid, signal.SIGKILL)
                elif len(happened) == 3:
                    ip("link", "set", "qb3", "down")  # the cable of "other"
                happened.append(done)

            logits, _, _ = members.judge(job, rows, trouble, size=100)
            assert len(logits) == len(rows)
            assert (logits[:600] == whole).all()
            assert sum("ended meanwhile" in note for note in members.notes) == 2
            assert [info["host"] for info in cluster.workers(client).values()] == [f"{NET}.4"]
    finally:
        processes.end()
