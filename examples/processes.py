"""Start the service of serve.py with one process a core, all at one port; when one ends, all end.

QBERT_MODEL=model-int8 PORT=8000 WORKERS=2 python examples/processes.py

Not uvicorn --workers: on the socket that it shares among processes the system holds back the second half of each answer
until the first half's arrival is confirmed, up to 40 ms later (Nagle's algorithm).
"""

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.connection import wait

import uvicorn


def serve(shared: socket.socket) -> None:
    """Answer what arrives at `shared`."""
    uvicorn.Server(uvicorn.Config("serve:app", access_log=False)).run(sockets=[shared])


if __name__ == "__main__":
    shared = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "8000"))), backlog=2048)
    shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each connection takes it over
    print(f"http://127.0.0.1:{shared.getsockname()[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    start = multiprocessing.get_context("spawn").Process
    workers = [
        start(target=serve, args=(shared,), daemon=True)  # daemon: it ends with this process
        for _ in range(int(os.environ.get("WORKERS") or os.cpu_count() or 1))
    ]
    for worker in workers:
        worker.start()
    wait([worker.sentinel for worker in workers])
    sys.exit("a process of the service has ended")
