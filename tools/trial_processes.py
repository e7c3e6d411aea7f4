"""What processes that serve one artefact hold and take: `python tools/trial_processes.py ARTEFACT [INTERPRETER ...]`.

Each interpreter is another installation of qbert; they take turns.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

SERVE = """
import sys, time
begin = time.perf_counter()
import qbert
classifier = qbert.load(sys.argv[1])
loaded = time.perf_counter() - begin
classifier(("体育新闻今天的比赛" * 14)[:118])  # 120 tokens
print(loaded, flush=True)
sys.stdin.read()
"""
TURNS = 5


def started(python: str, artefact: str) -> tuple["subprocess.Popen[str]", float, float]:
    """Start a process that serves; return it, the seconds to its first answer, and those that loading took."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [python, "-P", "-c", SERVE, artefact], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True
    )
    assert process.stdout
    loaded = float(process.stdout.readline())
    return process, time.perf_counter() - begin, loaded


def pss_mb(process: "subprocess.Popen[str]") -> float:
    with open(f"/proc/{process.pid}/smaps_rollup", encoding="utf-8") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def main(artefact: str, pythons: Sequence[str]) -> None:
    for python in pythons:
        started(python, artefact)[0].kill()  # what the first load makes, once
    times: dict[str, list[tuple[float, float]]] = {python: [] for python in pythons}
    for _ in range(TURNS):
        for python in pythons:
            process, answered, loaded = started(python, artefact)
            process.kill()
            times[python].append((answered, loaded))
    for python in pythons:
        answered, loaded = (statistics.median(column) for column in zip(*times[python], strict=True))
        print(f"{python}: loaded in {loaded:.2f} s, first answer {answered:.2f} s after the start")
        processes = []
        for count in (1, 2, 4, 8):
            while len(processes) < count:
                processes.append(started(python, artefact)[0])
            print(f"  {count} processes: {sum(map(pss_mb, processes)):.0f} MB (PSS)")
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or [sys.executable])
