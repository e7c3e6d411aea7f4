"""Measure examples/serve.py: requests a second and latency, compared with a plain loop over the same artefact.

python tools/load.py ARTEFACT [--workers N] [--clients N] [--seconds S] [--repeat N]
"""

import argparse
import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import qbert
from qbert.inputs import dataset

EXAMPLES = Path(__file__).parents[1] / "examples"


def ask(port: int, texts: list[str], seconds: float) -> list[float]:
    """Send requests one after the other over one connection; return the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    durations = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        body = json.dumps({"texts": [texts[len(durations) % len(texts)]]})
        connection.request("POST", "/classify", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        durations.append(time.perf_counter() - start)
    return durations


def report(what: str, durations: list[float], seconds: float) -> None:
    p50, p95 = np.percentile(durations, [50, 95]) * 1e3
    print(f"{what}: {len(durations) / seconds:.0f} a second, p50 {p50:.2f} ms, p95 {p95:.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    texts = list(dataset.load("news_mini").test["text"])
    classifier = qbert.load(options.artefact)
    classifier.many(texts[:20])
    command = [sys.executable, str(EXAMPLES / "processes.py")]
    variables = os.environ | {"QBERT_MODEL": options.artefact, "PORT": "0", "WORKERS": str(options.workers)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        port = int(service.stdout.readline().rpartition(":")[2])
        started = 0
        while started < options.workers:
            started += "startup complete" in service.stderr.readline()
        for _ in range(options.repeat):  # in turn, so that disturbances affect both
            durations = []
            end = time.perf_counter() + options.seconds
            while (start := time.perf_counter()) < end:
                classifier(texts[len(durations) % len(texts)])
                durations.append(time.perf_counter() - start)
            report("loop", durations, options.seconds)
            with multiprocessing.Pool(options.clients) as pool:
                clients = pool.starmap(ask, [(port, texts, options.seconds)] * options.clients)
            report("service", [duration for durations in clients for duration in durations], options.seconds)
        service.terminate()


if __name__ == "__main__":
    main()
