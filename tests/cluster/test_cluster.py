"""A real scheduler and real workers, as processes on loopback: files by their hash, documents by shards, deaths."""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loopback import Processes, client_of, of, other_tokenizers

from qbert import variants
from qbert.cli import main
from qbert.cluster import folders, judging
from qbert.cluster import workers as cluster
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows
from qbert.measure.cells import Suite
from qbert.selection import choosing, evaluation
from qbert.selection.kept_answers import KeptAnswers
from qbert.system.errors import InputError

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with of(tmp_path_factory.mktemp("two"), "one", "other") as processes:
        yield processes


def comparable(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in results]


def test_two_workers_find_what_one_process_does(two: Processes, trained: Checkpoint, news: Dataset) -> None:
    names = "fp32,int8-dynamic-onednn"
    alone = evaluation.evaluate(str(trained.folder), str(news.folder), names, 32)
    with client_of(two) as client:
        workers = judging.Workers(client)
        together = evaluation.evaluate(str(trained.folder), str(news.folder), names, 32, workers=workers)
    assert comparable(together.results) == comparable(alone.results)
    assert together.results[0]["p50_s"] > 0
    assert together.notes == []


def test_the_answers_that_a_choice_needs_are_the_same(
    two: Processes, trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = text_rows(news.test)[:40]
    cell = Suite(news, [str(trained.folder)], max_lengths=[32]).cell("tiny", 32, "fp32")
    alone = KeptAnswers(cell).logits(rows)
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))  # where none is kept
    with client_of(two) as client:
        together = KeptAnswers(cell, judging.Workers(client))
        assert (together.logits(rows) == alone).all()
        assert together.classified == len(rows)
        assert (together.logits(rows[:5]) == alone[:5]).all()
    assert together.classified == len(rows)


def test_files_are_sent_once_and_have_the_hash(two: Processes, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(os.urandom(100_000))
    (tmp_path / "empty").write_bytes(b"")
    with client_of(two) as client:
        here = folders.Folder.of(tmp_path)
        sent = replace(here, path="/nowhere")
        assert set(client.run(folders.lacks, sent).values()) == {True}
        with pytest.raises(InputError, match="was changed meanwhile"):
            folders.contents(sent)
        first, second = sorted(client.run(folders.lacks, sent))
        (future,) = client.scatter([folders.contents(here)], workers=[first])
        client.submit(folders.keep, sent, future, workers=[first], pure=False).result()
        assert client.run(folders.lacks, sent) == {first: False, second: True}
        folders.share(client, sent)
        assert set(client.run(folders.lacks, sent).values()) == {False}
        for name in ("one", "other"):
            (kept,) = (two.folder / name / "cache" / "cluster").glob("*/*")
            assert (kept / "sub" / "weights").read_bytes() == (tmp_path / "sub" / "weights").read_bytes()
        shutil.rmtree(two.folder / "one" / "cache" / "cluster")
        assert sorted(client.run(folders.lacks, sent).values()) == [False, True]  # what a worker had does not count
        damaged = {"sub/weights": np.zeros(3, np.uint8), "empty": np.zeros(0, np.uint8)}
        wrong = replace(sent, sha256="0" * 64)
        with pytest.raises(InputError, match="arrived damaged"):
            client.submit(folders.keep, wrong, damaged, workers=[first], pure=False).result()
        with pytest.raises(InputError, match="is no file below"):
            client.submit(folders.keep, wrong, {"../up": damaged["empty"]}, workers=[first], pure=False).result()


def test_one_is_killed_in_the_middle_and_one_comes_later(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    rows = text_rows(news.test) * 10
    with of(tmp_path, "one", "other") as processes, client_of(processes) as client:
        members = judging.Workers(client)
        job = members.job(variants.get("fp32"), trained, news, 64, rows[:5])
        whole, _, _ = members.judge(job, rows)
        killed: list[int] = []

        def kill(done: int) -> None:
            if not killed:  # the other one is at a shard, too
                os.kill(processes.workers.pop("other").pid, signal.SIGKILL)
                killed.append(done)

        logits, seconds, _ = members.judge(job, rows, kill)
        assert 0 < killed[0] < len(rows)
        assert len(seconds) == len(rows)
        assert (logits == whole).all()
        (note,) = members.notes
        assert "ended meanwhile: what it had not finished was done by others" in note

        here, job = job.checkpoint, replace(job, checkpoint=replace(job.checkpoint, path="/nowhere"))
        (first,) = cluster.workers(client)
        (sent,) = client.scatter([folders.contents(here)])
        client.submit(folders.keep, job.checkpoint, sent, workers=[first], pure=False).result()
        processes.add("later")
        client.wait_for_workers(2, timeout=60)
        (later,) = set(cluster.workers(client)) - {first}
        assert client.run(folders.lacks, job.checkpoint)[later]
        logits, _, _ = members.judge(job, rows)
        assert (logits == whole).all()
        assert not client.run(folders.lacks, job.checkpoint)[later]


def test_other_libraries_on_a_worker_are_named(tmp_path: Path) -> None:
    with of(tmp_path) as processes:
        processes.add("odd", PYTHONPATH=str(other_tokenizers(tmp_path)))
        with client_of(processes) as client:
            (sentence,) = cluster.unlike(client)
            assert "has tokenizers 0.0.1 (" in sentence
            with pytest.raises(InputError, match=r"chosen for this machine, and .* has tokenizers 0\.0\.1"):
                choosing.check_workers(judging.Workers(client))


def test_a_worker_with_several_threads_is_refused(tmp_path: Path) -> None:
    with of(tmp_path) as processes:
        processes.add("wide", "--nthreads=2")
        with pytest.raises(InputError, match="--nthreads 1"), cluster.connect(str(processes.file)):
            pass


@pytest.mark.parametrize(
    ("address", "told"),
    [("local:0", "number of worker processes"), ("local:two", "number of"), ("tcp://127.0.0.1:1", "no scheduler")],
)
def test_a_cluster_that_is_none_is_a_mistake(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(InputError, match=told), cluster.connect(address):
        pass


@pytest.mark.filterwarnings("error:Port")
def test_a_cluster_of_this_machine_takes_no_port_of_others_and_listens_to_it_alone() -> None:
    psutil = pytest.importorskip("psutil")  # distributed needs it

    def listening() -> set[tuple[str, int]]:
        here = psutil.Process()
        processes = (here, *here.children(recursive=True))
        found = [connection for process in processes for connection in process.net_connections()]
        return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN}

    with socket.socket() as other:
        with contextlib.suppress(OSError):  # somebody has it already
            other.bind(("127.0.0.1", 8787))  # Dask's dashboard
        other.listen()
        before = listening()  # other tests' clusters
        with cluster.connect("local:1"):
            new = listening() - before
    assert len(new) > 1
    assert {address for address, _ in new} == {"127.0.0.1"}


def shard(start: int, texts: list[tuple[str, ...]]) -> judging.Shard:
    logits = np.arange(2 * len(texts), dtype=np.float32).reshape(-1, 2)
    return judging.Shard(start, judging.texts_sha256(texts), logits, np.ones(len(texts)), "w", logits, {})


def test_the_shards_are_proven_to_be_all_documents_once() -> None:
    texts = [(str(number),) for number in range(5)]
    first, second = shard(0, texts[:3]), shard(3, texts[3:])
    logits, seconds = judging.joined([second, first], texts)
    assert logits[:, 0].tolist() == [0, 2, 4, 0, 2]
    assert len(seconds) == 5
    assert len(judging.joined([first, replace(second, machine=("another",))], texts)[1]) == 0
    for wrong in (
        [first],
        [second],
        [first, first, second],
        [first, shard(3, texts[:2])],
        [shard(0, texts[:4]), second],
    ):
        with pytest.raises(InputError, match="not classified"):
            judging.joined(wrong, texts)


def test_workers_that_calculate_otherwise_are_named() -> None:
    one = shard(0, [("a",), ("b",)])
    assert judging.otherwise("fp32", [one, replace(one, start=2, worker="v")]) == []
    other = replace(one, start=2, worker="v", trial=one.trial[:, ::-1] * np.float32(0.5))
    (told,) = judging.otherwise("fp32", [one, other])
    assert "v does not calculate as w does: of 2 documents that both classified, 2 have another label" in told


@pytest.mark.parametrize(("documents", "workers", "size"), [(2000, 2, 125), (10, 4, 1), (10**6, 8, 1000), (1, 1, 1)])
def test_shards_are_neither_few_nor_tiny(documents: int, workers: int, size: int) -> None:
    assert judging.shard_size(documents, workers) == size


@pytest.mark.slow
def test_the_command_runs_on_processes_of_its_own(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    arguments = ["evaluate", "--model", str(trained.folder), "--dataset", str(news.folder), "--variants", "fp32"]
    written = [tmp_path / "alone.json", tmp_path / "together.json"]
    for place, more in zip(written, ([], ["--cluster", "local:2"]), strict=True):
        done = CliRunner().invoke(main, [*arguments, "--max-length", "32", "--json", str(place), *more])
        assert done.exit_code == 0, done.output

    assert comparable(json.loads(written[0].read_text())) == comparable(json.loads(written[1].read_text()))
