"""The workers of a cluster reproduce the published experiment: each makes and measures trainings of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

from qbert.cluster import folders
from qbert.cluster import workers as cluster
from qbert.cluster.folders import Folder
from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.training import GEOMETRIES
from qbert.measure.cells import Suite
from qbert.selection.reproduce import Training, one
from qbert.system.terminal import progress

if TYPE_CHECKING:
    from distributed import Client


def run(suite: Suite, variant: str, base: str, client: "Client") -> list[Training]:
    """Return what reproduce.run does, each training made and measured by a worker; they work side by side."""
    dataset = folders.splits(suite.dataset)
    folders.share(client, dataset)
    found: str | Folder = base
    if base not in GEOMETRIES:
        found = folders.weights(Checkpoint(Path(next(iter(suite.models.values())).source)))
        folders.share(client, found)
    wanted = [(max_length, model) for max_length in suite.max_lengths for model in suite.models]
    waiting = {
        client.submit(on_worker, dataset, found, variant, max_length, model, len(suite.models), pure=False): number
        for number, (max_length, model) in enumerate(wanted)
    }
    results: dict[int, Training] = {}
    with progress("trainings", len(wanted)) as advance:
        for future in cluster.finished(client, waiting, "training"):
            with cluster.likely_reason(client):
                results[waiting.pop(future)] = future.result()
            advance(len(results))
    return [results[number] for number in range(len(wanted))]


def on_worker(
    dataset: Folder, base: str | Folder, variant: str, max_length: int, model: str, experiments: int
) -> Training:
    """Make and measure one training in this worker, on a core of its own."""
    source = base if isinstance(base, str) else str(base.required())
    with cluster.one_process_a_core():
        loaded = datasets.load(dataset.required())
        suite = Suite(loaded, [source], max_lengths=[max_length], experiments=experiments, fine_tune=True)
        return one(suite, variant, max_length, model)
