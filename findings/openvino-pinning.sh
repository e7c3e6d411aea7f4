#!/usr/bin/env bash
# openvino 2026.4.1, numpy 2.4.6; Linux, two processors or more.
#
# One expects a call of a compiled model to compute where the calling thread may run: whoever serves with several
# processes gives each its own core, or leaves that to the system, and has twice the throughput with two.
#
# By default (ENABLE_CPU_PINNING) it is otherwise. A model with one inference thread computes in the thread that calls
# it. One compiled while the process may use two processors binds that thread to the first of them for each call, in
# every process, whatever mask the thread was given since, and sets the mask of the thread's first call again
# afterwards: what the caller had chosen is lost. Two processes share one processor, and the other idles.
#
# With ENABLE_CPU_PINNING=False the caller's mask is kept afterwards, and two processes use both processors. During
# calls, though, the mask is that of both, not the caller's: TBB binds threads to all that the process could use when it
# started. Only where HWLOC_THISSYSTEM=0 in the environment also keeps hwloc, by which TBB binds, from doing so, do calls
# run where the caller chose. A model compiled under the restriction keeps to it by default.
#
# It matters because nothing says so: the answers are right, and the processes wait for one processor.
#
# Seen (Python 3.11, Linux, x86-64, two processors):
#   pinning on: thread restricted to 1 runs calls on 0, has the mask 0,1 afterwards;
#     two processes that may use both run on 0 and 0
#   pinning off: thread restricted to 1 runs calls on 0-1, has the mask 1 afterwards;
#     two processes that may use both run on 0-1 and 0-1
#   pinning off, HWLOC_THISSYSTEM=0: calls on 1, afterwards 1
#   compiled under the restriction to 1: calls on 1, afterwards 1
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6

cat >pinning.py <<'EOF'
"""Print the masks during and after calls: pinning.py on|off|early SECONDS 1|01.

The last says which of two processors the thread chooses: after it has compiled, or, `early`, before.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

WIDTH, ROWS = 1024, 32
here = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, here)
random = np.random.default_rng(0)
values = inputs = op.parameter([ROWS, WIDTH], np.float32)
for _ in range(4):
    weight = (random.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    values = op.relu(op.matmul(values, op.constant(weight), False, True))
config = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
chosen = {here[int(digit)] for digit in sys.argv[3]}
if sys.argv[1] == "early":
    os.sched_setaffinity(0, chosen)
if sys.argv[1] == "off":
    config["ENABLE_CPU_PINNING"] = False
compiled = ov.compile_model(ov.Model([op.result(values)], [inputs]), "CPU", config)
rows = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
compiled(rows)

os.sched_setaffinity(0, chosen)
during, calling = Counter(), threading.Event()


def sample():
    status = Path(f"/proc/self/task/{os.getpid()}/status")
    while not calling.is_set():
        lines = status.read_text().splitlines()
        during[next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))] += 1
        time.sleep(0.002)


thread = threading.Thread(target=sample)
thread.start()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    compiled(rows)
calling.set()
thread.join()
after = ",".join(map(str, sorted(os.sched_getaffinity(0))))
print(json.dumps({"during": during.most_common(1)[0][0], "after": after}))
EOF

cat >show.py <<'EOF'
"""Print what was seen; exit with 1 where it is no longer so."""

import json
import os
import subprocess
import sys


def run(pinning, *masks, **variables):
    """Run a process for each of `masks` at once, 5 s each; return what each printed."""
    command, environment = [sys.executable, "pinning.py", pinning, "5"], os.environ | variables
    started = [subprocess.Popen([*command, mask], stdout=subprocess.PIPE, env=environment) for mask in masks]
    return [json.loads(process.communicate()[0]) for process in started]


if len(os.sched_getaffinity(0)) < 2:
    sys.exit("this needs two processors")
first, second = (str(number) for number in sorted(os.sched_getaffinity(0))[:2])
masks = {}
for pinning in ("on", "off"):
    (restricted,), two = run(pinning, "1"), run(pinning, "01", "01")
    masks[pinning] = restricted
    print(
        f"pinning {pinning}: thread restricted to {second} runs calls on {restricted['during']}, has the mask "
        f"{restricted['after']} afterwards;\n  two processes that may use both run on "
        f"{' and '.join(each['during'] for each in two)}"
    )
(unbound,) = run("off", "1", HWLOC_THISSYSTEM="0")
print(f"pinning off, HWLOC_THISSYSTEM=0: calls on {unbound['during']}, afterwards {unbound['after']}")
(early,) = run("early", "1")
print(f"compiled under the restriction to {second}: calls on {early['during']}, afterwards {early['after']}")
both = f"{first},{second}"
seen = (masks["on"]["during"], masks["on"]["after"], masks["off"]["after"]) == (first, both, second)
seen = seen and masks["off"]["during"] != second == unbound["during"]
print("seen: calls run on the first processor, whatever the caller chose" if seen else "no longer seen")
sys.exit(0 if seen else 1)
EOF
env/bin/python show.py
