"""A service that classifies texts: one process a core, each with a model of its own.

pip install 'pytest-qbert[onnxruntime,serve]'
QBERT_MODEL=model-int8 python examples/processes.py
curl localhost:8000/classify --json '{"texts": ["国足客场两球取胜"]}'
"""

import os
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import qbert

MOST_TEXTS = 32
MOST_CHARACTERS = 10_000
MOST_BYTES = 1 << 20  # 32 texts of 10,000 characters would be more; such a client sends fewer at a time

app = FastAPI()
classifier = qbert.load(os.environ["QBERT_MODEL"], max_characters=MOST_CHARACTERS)


class Texts(BaseModel):
    """What a client asks."""

    texts: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]


class Found(BaseModel):
    """The answer to one text."""

    label: str | None
    score: float
    scores: dict[str, float]


@app.middleware("http")
async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what is too long before it is read."""
    length = request.headers.get("content-length", "0" if request.method == "GET" else "")
    if "transfer-encoding" in request.headers or not length.isdecimal():
        return JSONResponse({"detail": "say how long the request is: content-length"}, 411)
    if int(length) > MOST_BYTES:
        return JSONResponse({"detail": f"{length} bytes: send at most {MOST_BYTES}"}, 413)
    return await call_next(request)


@app.exception_handler(qbert.InputError)
async def refuse(_: Request, error: qbert.InputError) -> JSONResponse:
    """Say what is wrong with a text."""
    return JSONResponse({"detail": str(error)}, 422)


@app.get("/health")
async def health() -> dict[str, object]:
    """Say that this process answers, and what it serves."""
    return {
        "variant": classifier.variant,
        "labels": classifier.labels,
        "max_length": classifier.max_length,
        "versions": classifier.versions,
    }


@app.post("/classify")
async def classify(asked: Texts) -> list[Found]:
    """Classify each text.

    Not in a thread: a process has one core, which one text at a time uses best.
    """
    return [
        Found(label=found.label, score=found.score, scores=dict(found.scores)) for found in classifier.many(asked.texts)
    ]
