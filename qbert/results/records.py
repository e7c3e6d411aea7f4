"""The types of what a saved run holds."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Seconds = Annotated[float, Meta(gt=0, lt=1e6)]  # nobody waits eleven days for one call
Ratio = Annotated[float, Meta(gt=0, lt=1e6)]
Rate = Annotated[float, Meta(ge=0, lt=1e9)]
Cost = Annotated[float, Meta(gt=0, lt=1e12)]
Bytes = Annotated[float, Meta(ge=0, lt=2**60)]
Share = Annotated[float, Meta(ge=0, le=1)]
LimitShare = Annotated[float, Meta(gt=0, lt=100)]
Correlation = Annotated[float, Meta(ge=-1, le=1)]


class Score(float):
    """Stands for the score of a metric, whose least value is its own."""


class Drop(float):
    """Stands for the drop of a score."""


Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class Definition(Struct):
    """The part of a variant's definition that is read."""

    precision: str
    runtime: str | UnsetType = UNSET


class Identity(Struct):
    """What was measured, and on which machine: compare.SUBJECT."""

    processor: str
    instruction_sets: list[str]
    versions: dict[str, str]
    checkpoint_sha256: str
    dataset_sha256: str
    definition: Definition
    threads: int | None
    dataset: str
    hardware: dict[str, int | str] | UnsetType = UNSET
    machine_name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class Measured(Struct, kw_only=True):
    """The part of `extra_info` that every benchmark of this suite has."""

    model: str
    max_length: Positive
    variant: str
    trained: bool
    identity: Identity


class Flip(Struct):
    """A document whose label, or query whose order, differs from the baseline's: Metric.flipped."""

    row: Count
    label: str
    baseline: str
    variant: str
    baseline_margin: float
    variant_margin: float
    text: str


_IDS = r"(-|\d{1,4}(,\d{1,4})*)( (-|\d{1,4}(,\d{1,4})*))*"
Ids = Annotated[str, Meta(pattern=f"^{_IDS}$")]
"""The label ids of each document, as labels.packed writes them."""
_NUMBER = r"-?\d{1,20}(\.\d{1,20})?(e[+-]?\d{1,3})?"
Truth = Annotated[str, Meta(pattern=rf"^({_IDS}|{_NUMBER}( {_NUMBER})*)$")]
"""The label ids, or the true number, of each document."""


class Recorded(Struct):
    """The answers to the test documents: Metric.record, and labels.packed_logits, which older runs may lack."""

    labels: Truth
    logits_sha256: str
    predicted: Ids | UnsetType = UNSET
    """Where answers are labels."""
    metric: Literal["pearson", "ndcg"] | UnsetType = UNSET
    """Where answers are numbers."""
    activation: Literal["sigmoid", "tanh"] | UnsetType = UNSET
    queries: Annotated[str, Meta(pattern=r"^\d{1,9}( \d{1,9})*$")] | UnsetType = UNSET
    """The number of each document's query."""
    logits: str | UnsetType = UNSET
    logits_type: Literal["float32", "float16"] | UnsetType = UNSET
    rows: Annotated[str, Meta(pattern=r"^\d{1,9}( \d{1,9})*$")] | UnsetType = UNSET
    """The documents' places in the test split, from 0, where they are a sample of it."""
    label_names: list[str] | UnsetType = UNSET


class Tokens(Struct):
    """How many tokens texts have: 5, 50 and 95 % of them have at most these."""

    p5: Count
    p50: Count
    p95: Count


class Point(Struct):
    """What fewer or as many workers serve."""

    workers: Positive
    texts_per_s: Rate
    rate_within_limit: Rate
    loaded_p50_s: Seconds
    loaded_p95_s: Seconds | UnsetType = UNSET
    loaded_p99_s: Seconds | UnsetType = UNSET
