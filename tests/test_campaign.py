"""A few kills, damages and garbled inputs; `python tools/campaign.py` does hundreds."""

import json
from pathlib import Path

import campaign
import pytest
from made_up import whole

from qbert.inputs import training
from qbert.inputs.dataset import Dataset


@pytest.mark.timeout(1800, method="thread")  # the campaign has the signal's timer for itself
@pytest.mark.parametrize(
    "count", [pytest.param(6, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.exhaustive)]
)
def test_nothing_finished_is_not_whole_and_nothing_wrong_is_silent(news: Dataset, tmp_path: Path, count: int) -> None:
    recipe = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    checkpoint = training.train(news, "bert-tiny", tmp_path / "tiny", max_length=16, recipe=recipe).folder
    saved = tmp_path / "run.json"
    saved.write_text(json.dumps(whole()))
    counts = campaign.campaign(checkpoint, news.folder, saved, count, 0, tmp_path, ["int8-dynamic-onednn"])
    assert sum(counts.values()) >= 3 * count
    assert not [came for came in counts if campaign.FAULT in came], json.dumps(counts, indent=1)
