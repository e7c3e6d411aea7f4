"""The workers of a cluster judge a dataset's documents: each has a share of them, and takes one text at a time."""

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import variants
from qbert.cluster import folders
from qbert.cluster import workers as cluster
from qbert.cluster.folders import Folder, lacks, share
from qbert.cluster.workers import LOST, GoneError, likely_reason, one_process_a_core, result, workers
from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.measure import accuracy
from qbert.system import machine
from qbert.system.errors import InputError
from qbert.system.terminal import counted
from qbert.variants import Variant

if TYPE_CHECKING:
    from distributed import Client, Future

    from qbert.measure.cells import Cell

Text = tuple[str, ...]
Logits = npt.NDArray[np.float32]
Seconds = npt.NDArray[np.float64]

SHARDS_A_WORKER = 8
"""Fewer leave workers idle at the end, more cost more calls (docs/machines.md)."""
IN_FLIGHT = 4
"""Shards a worker has or waits for: it never waits for the next, and the scheduler never holds all texts."""
MOST_DOCUMENTS = 1_000
"""Of a shard: what a worker loses when it dies; some seconds to a minute of work."""


@dataclass(frozen=True)
class Job:
    """A variant and what it needs to classify documents."""

    variant: str
    module: str
    """The module that registers it."""
    checkpoint: Folder
    artefact: Folder | None
    """What it is loaded from, unless that is the checkpoint."""
    max_length: int
    trial: tuple[Text, ...]
    """The first documents, which every worker classifies to warm up: it shows whether all workers answer alike."""


@dataclass(frozen=True)
class Shard:
    """What a worker has answered."""

    start: int
    """The place of its first document among all."""
    texts_sha256: str
    """Of the texts that the worker has seen."""
    logits: Logits
    seconds: Seconds
    worker: str
    trial: Logits
    evidence: Mapping[str, Any]
    machine: tuple[Any, ...] = ()
    """Equal for workers whose times may be taken together."""
    lacking: tuple[Folder, ...] = ()
    """What the worker, which came later, has not: then nothing was classified."""


def texts_sha256(texts: Sequence[Text]) -> str:
    """Return the hash of `texts`."""
    return hashlib.sha256("\0\0".join("\0".join(text) for text in texts).encode(errors="surrogatepass")).hexdigest()


def _chosen(job: Job) -> Variant:
    importlib.import_module(job.module)
    return variants.get(job.variant)


def make(job: Job, dataset: Folder | None) -> Folder:
    """Return the artefact of `job`, which this worker makes or has made, calibrated on documents of `dataset`."""
    with one_process_a_core():
        loaded = None if dataset is None else datasets.load(dataset.required())
        folder = variants.prepare(_chosen(job), Checkpoint(job.checkpoint.required()), loaded, job.max_length)
        return Folder.of(folder)


@lru_cache(maxsize=1)  # the next variant takes its place
def _ready(job: Job) -> tuple[Any, Any, Logits]:
    checkpoint = Checkpoint(job.checkpoint.required())
    classifier = variants.load(_chosen(job), checkpoint, (job.artefact or job.checkpoint).required())
    trial = [classifier(checkpoint.encoder(*text, max_length=job.max_length)) for text in job.trial]
    return classifier, checkpoint.encoder, np.concatenate(trial)


def judge(job: Job, start: int, texts: Sequence[Text]) -> Shard:
    """Classify `texts` one at a time on one core; they begin at `start` of all documents."""
    from distributed import get_worker

    worker = str(get_worker().address)
    needed = [folder for folder in (job.checkpoint, job.artefact) if folder is not None]
    if lacking := tuple(folder for folder in needed if lacks(folder)):
        none = np.empty((0, 0), np.float32)
        return Shard(start, "", none, np.empty(0), worker, none, {}, lacking=lacking)
    with one_process_a_core():
        classifier, encoder, trial = _ready(job)
        logits, seconds = accuracy.classify(classifier, encoder, texts, job.max_length)
    here = machine_key(machine.identity())
    return Shard(start, texts_sha256(texts), logits, seconds, worker, trial, dict(classifier.evidence), here)


@dataclass
class Workers:
    """The workers that judge a dataset's documents."""

    client: "Client"
    packages: tuple[str, ...] = ()
    """Those of the variants, whose versions should be the same everywhere."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of the workers."""
    _jobs: dict[tuple[str, str], Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look at the workers."""
        self.machines: dict[str, dict[str, Any]] = cluster.ask(self.client, machine.identity)
        kinds = {machine_key(identity): identity for identity in self.machines.values()}
        same = ("processor", "instruction_sets", "hardware")
        first = next(iter(kinds.values()))
        self.identity: dict[str, Any] = {} if len(kinds) > 1 else {name: first[name] for name in same}
        """What the workers' results are of, unless their machines are not alike."""
        self.notes += cluster.unlike(self.client, *self.packages)

    def classify(
        self, cell: "Cell", texts: Sequence[Text], advance: Callable[[int], None] = lambda _: None
    ) -> tuple[Logits, Seconds, Mapping[str, Any]]:
        """Return what judge does, for `cell`, whose job is made once."""
        key = cell.checkpoint.sha256, cell.name
        if key not in self._jobs:
            trial = texts[: accuracy.WARM_UP_DOCUMENTS]
            self._jobs[key] = self.job(cell.variant, cell.checkpoint, cell.suite.dataset, cell.max_length, trial)
        return self.judge(self._jobs[key], texts, advance)

    def job(
        self,
        variant: Variant,
        checkpoint: Checkpoint,
        dataset: "datasets.Dataset",
        max_length: int,
        trial: Sequence[Text],
    ) -> Job:
        """Return what `variant` needs, made on one worker and then on all."""
        weights = folders.weights(checkpoint)
        job = Job(variant.name, variant.load.__module__, weights, None, max_length, tuple(trial))
        share(self.client, weights)
        if variant.export is None:
            return job
        made = self._made(job, folders.splits(dataset) if variant.calibrated else None)
        share(self.client, made)
        return replace(job, artefact=made)

    def _made(self, job: Job, calibration: Folder | None) -> Folder:
        """Return the artefact of `job`, made on the first worker that lives so long."""
        for worker in sorted(workers(self.client)):
            try:
                if calibration is not None:
                    share(self.client, calibration, to=[worker])
                future = self.client.submit(make, job, calibration, workers=[worker], pure=False)
                made: Folder = result(self.client, future, worker)
            except GoneError:
                continue
            return made
        raise InputError(f"every worker ended while it made {job.variant}: look at their logs")

    def judge(
        self,
        job: Job,
        texts: Sequence[Text],
        advance: Callable[[int], None] = lambda _: None,
        *,
        size: int | None = None,
    ) -> tuple[Logits, Seconds, Mapping[str, Any]]:
        """Classify `texts`, each once, on all workers, `size` of them in a shard (default: shard_size).

        Returns:
            Logits `(documents, num_labels)`; seconds of each document, empty where the workers' machines are not alike;
            the classifier's evidence.

        Raises:
            InputError: a shard cannot be classified, no worker is left, or the shards are not all documents once.
        """
        size = shard_size(len(texts), self._workers()) if size is None else size
        starts = iter(range(0, len(texts), size))
        waiting: dict[Future[Any], int] = {}
        shards: list[Shard] = []
        judged = 0

        def submit(*places: int) -> None:
            for start in places:
                arguments = (job, start, list(texts[start : start + size]))
                waiting[self.client.submit(judge, *arguments, pure=False)] = start

        submit(*islice(starts, IN_FLIGHT * self._workers()))
        for future in cluster.finished(self.client, waiting, "shard"):
            shard = self._result(future, job)
            start = waiting.pop(future)
            if shard.lacking:
                for folder in shard.lacking:
                    share(self.client, folder, to=[shard.worker])
                submit(start)
                continue
            shards.append(shard)
            judged += len(shard.logits)
            advance(judged)
            submit(*islice(starts, max(0, IN_FLIGHT * self._workers() - len(waiting))))
        self.notes += otherwise(job.variant, shards)
        self._note_deaths()
        logits, seconds = joined(shards, texts)
        return logits, seconds, shards[0].evidence

    def _workers(self) -> int:
        """Return how many workers there are; at least one, which has to come."""
        return max(1, len(workers(self.client)))

    def _result(self, future: "Future[Any]", job: Job) -> Shard:
        from distributed import KilledWorker

        try:
            with likely_reason(self.client):
                return future.result()  # type: ignore[no-any-return]
        except KilledWorker as error:
            last = getattr(error.last_worker, "address", error.last_worker)
            raise InputError(
                f"{job.variant}: {counted(LOST, 'worker')} ended over one shard of documents, {last} the last: look at "
                "its log; has it too little memory?"
            ) from error

    def _note_deaths(self) -> None:
        for worker in sorted(set(self.machines) - set(workers(self.client))):
            del self.machines[worker]
            self.notes.append(f"{worker} ended meanwhile: what it had not finished was done by others")


@contextlib.contextmanager
def workers_at(address: str | None, packages: Sequence[str] = ()) -> Iterator[Workers | None]:
    """Provide the workers of the cluster at `address` (workers.connect); None where there is no address.

    Raises:
        InputError: the cluster does not answer.
    """
    if address is None:
        yield None
        return
    with cluster.connect(address) as client:
        yield Workers(client, tuple(packages))


def otherwise(variant: str, shards: Sequence[Shard]) -> list[str]:
    """Return a sentence for each worker that answered the trial documents otherwise than the first shard's worker."""
    first = min(shards, key=lambda shard: shard.start)
    return [
        f"{variant}: {worker} does not calculate as {first.worker} does: of {len(trial)} documents that both "
        f"classified, {labels_apart(trial, first.trial)}logits differ by {apart:.3g} at most"
        for worker, trial in sorted({shard.worker: shard.trial for shard in shards}.items())
        if (apart := float(np.abs(trial - first.trial).max()))
    ]


def labels_apart(trial: Logits, other: Logits) -> str:
    """Return how many documents have another label, in words; nothing where the one output is a number."""
    if trial.shape[1] == 1:
        return ""
    return f"{int((trial.argmax(axis=1) != other.argmax(axis=1)).sum())} have another label, and "


def machine_key(identity: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what is the same for workers whose times may be taken together."""
    return identity["processor"], tuple(identity["instruction_sets"]), tuple(sorted(identity["hardware"].items()))


def shard_size(documents: int, workers: int) -> int:
    """Return how many documents make a shard."""
    return max(1, min(MOST_DOCUMENTS, -(-documents // (workers * SHARDS_A_WORKER))))


def joined(shards: Sequence[Shard], texts: Sequence[Text]) -> tuple[Logits, Seconds]:
    """Return logits and seconds of all `texts`, in order; no seconds where machines are not alike.

    Raises:
        InputError: the shards are not each document exactly once, or are of other texts.
    """
    ordered = sorted(shards, key=lambda shard: shard.start)
    expected = 0
    for shard in ordered:
        end = shard.start + len(shard.logits)
        if shard.start != expected or shard.texts_sha256 != texts_sha256(texts[shard.start : end]):
            raise InputError(f"the documents from {expected} on were not classified exactly once: start again")
        expected = end
    if expected != len(texts):
        raise InputError(f"{len(texts) - expected} documents were not classified: start again")
    several = len({shard.machine for shard in ordered}) > 1
    seconds = np.empty(0) if several else np.concatenate([shard.seconds for shard in ordered])
    return np.concatenate([shard.logits for shard in ordered]), seconds
