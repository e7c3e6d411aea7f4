"""Measure examples/serve.py: requests a second and latency, beside a bare loop over the same artefact.

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
from qbert import dataset

EXAMPLES = Path(__file__).parents[1] / "examples"


def ask(port: int, texts: list[str], seconds: float) -> list[float]:
    """The seconds that each request took, one after the other over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    took = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        body = json.dumps({"texts": [texts[len(took) % len(texts)]]})
        connection.request("POST", "/classify", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        took.append(time.perf_counter() - start)
    return took


def told(what: str, took: list[float], seconds: float) -> None:
    p50, p95 = np.percentile(took, [50, 95]) * 1e3
    print(f"{what}: {len(took) / seconds:.0f} a second, p50 {p50:.2f} ms, p95 {p95:.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    texts = list(dataset.load("news_mini").test["text"])
    classifier = qbert.load(asked.artefact)
    classifier.many(texts[:20])
    command = [sys.executable, str(EXAMPLES / "processes.py")]
    variables = os.environ | {"QBERT_MODEL": asked.artefact, "PORT": "0", "WORKERS": str(asked.workers)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        port = int(service.stdout.readline().rpartition(":")[2])
        started = 0
        while started < asked.workers:
            started += "startup complete" in service.stderr.readline()
        for _ in range(asked.repeat):  # in turns, so that what disturbs one disturbs the other
            took = []
            end = time.perf_counter() + asked.seconds
            while (start := time.perf_counter()) < end:
                classifier(texts[len(took) % len(texts)])
                took.append(time.perf_counter() - start)
            told("loop", took, asked.seconds)
            with multiprocessing.Pool(asked.clients) as pool:
                each = pool.starmap(ask, [(port, texts, asked.seconds)] * asked.clients)
            told("service", [one for took in each for one in took], asked.seconds)
        service.terminate()


if __name__ == "__main__":
    main()
