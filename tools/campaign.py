"""Kill commands, damage artefacts and garble inputs, hundreds of times each; count the outcomes.

What a killed command leaves must be absent or whole; damaged and garbled inputs must be reported in a sentence.

`python tools/campaign.py --run RUN.json` does 300 of each; tests/test_campaign.py does a few.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import damage
import garble
from click.testing import CliRunner
from forked import SERVER

LONGEST_S = 120  # a command that takes longer hangs
TEXTS = ("体育新闻", "健康", "a film that nobody liked")
FAULT = "FAULT: "
"""The beginning of each outcome that must not occur."""


@dataclass(frozen=True)
class Command:
    """A command of qbert to be killed, its output, and a check that the output is whole."""

    name: str
    arguments: tuple[str, ...]
    output: Path
    is_whole: Callable[[Path], bool]

    def start(self) -> ForkServerProcess:
        """Start it in a process that has already imported torch, which takes most of the time."""
        child = SERVER.Process(target=_run_alone, args=(self.arguments,))
        child.start()
        return child

    def finish(self) -> bool:
        """Run it to its end; return whether it succeeds and its output is whole."""
        child = self.start()
        child.join(LONGEST_S)
        _kill(child)
        return child.exitcode == 0 and self.is_whole(self.output)

    def kill(self, after_s: float, await_stage_s: float) -> None:
        """Start it, wait up to `await_stage_s` until it begins to write, and kill it `after_s` later."""
        before, child, begun = self.unfinished(), self.start(), time.monotonic()
        while time.monotonic() - begun < await_stage_s and not self.unfinished() - before:
            time.sleep(0.001)
        time.sleep(after_s)
        _kill(child)

    def unfinished(self) -> set[str]:
        """Return the names of its unfinished files and folders beside its output."""
        return {path.name for path in self.output.parent.glob(f".*{self.output.stem}.unfinished*")}

    def remove(self) -> None:
        """Remove its output."""
        if self.output.is_dir():
            shutil.rmtree(self.output)
        else:
            self.output.unlink(missing_ok=True)


def _run_alone(arguments: tuple[str, ...]) -> None:
    """Run `qbert ARGUMENTS` in this process, as the leader of a process group and without output."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    from qbert.cli import main

    main(arguments, standalone_mode=True)


def _kill(child: ForkServerProcess) -> None:
    """Kill `child` and its process group."""
    assert child.pid is not None
    for kill in (os.killpg, os.kill):  # right after its start it leads no group yet
        with contextlib.suppress(ProcessLookupError):
            kill(child.pid, signal.SIGKILL)
    child.join()


def kills(commands: list[Command], count: int, seed: int) -> Iterator[str]:
    """Kill `commands` at `count` random moments, half of them while they write; yield the outcome of each.

    After every fifth kill the command runs again: it has to succeed, and to leave nothing unfinished.
    """
    chance = random.Random(seed)  # noqa: S311  nothing secret is drawn
    durations = {}
    for command in commands:
        start = time.monotonic()
        if not command.finish():
            yield f"{FAULT}{command.name} fails undisturbed"
            return
        durations[command.name] = time.monotonic() - start
        command.remove()
    for number in range(count):
        command = chance.choice(commands)
        while_writing = chance.choice([True, False])
        duration = durations[command.name]
        command.kill(chance.uniform(0, duration * (0.2 if while_writing else 1.0)), duration * while_writing)
        if not command.output.exists():
            yield "killed: nothing is there"
        elif command.is_whole(command.output):
            yield "killed: it was whole"
        else:
            yield f"{FAULT}{command.name}: what a killed run left looks finished"
        command.remove()
        if number % 5 == 0:
            if not command.finish():
                yield f"{FAULT}{command.name}: the next run fails over what a killed one left"
            elif left := command.unfinished():
                yield f"{FAULT}{command.name}: {', '.join(left)} stays"
            command.remove()


def _damage(path: Path, chance: random.Random) -> str:
    """Damage the file `path` in one of four ways; return which."""
    content = path.read_bytes()
    place = chance.randrange(len(content)) if content else 0
    how = chance.choice(["a bit flipped", "cut short", "emptied", "removed"] if content else ["removed"])
    if how == "removed":
        path.unlink()
    elif how == "a bit flipped":
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
    else:
        path.write_bytes(content[:place] if how == "cut short" else b"")
    return how


def run(*arguments: object) -> tuple[str, str]:
    """Run `qbert ARGUMENTS` in this process; return the outcome and the output.

    The outcome is `answered`, `refused` (exit code 2 and an error on one line), or a fault.
    """

    def hangs(*_: object) -> None:
        raise BaseExceptionGroup("hangs", [TimeoutError()])  # the command does not catch it

    from qbert.cli import main

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST_S)
    try:
        done = CliRunner().invoke(main, list(map(str, arguments)), standalone_mode=True)
    finally:
        signal.alarm(0)
    if done.exit_code == 0:
        return "answered", done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    if done.exit_code != 2 or len(errors) != 1 or not done.stderr.endswith(f"{errors[0]}\n"):
        return f"{FAULT}exit code {done.exit_code}, {done.exception!r}, {done.stderr[-200:]!r}", done.stdout
    if "qbert did not expect this" in errors[0]:
        return f"{FAULT}{errors[0]}", done.stdout
    return "refused", done.stdout


def damages(artefacts: list[Path], count: int, seed: int, place: Path) -> Iterator[str]:
    """Damage a file in a copy of one of `artefacts`, `count` times; yield the outcome of predict."""
    chance = random.Random(seed)  # noqa: S311  nothing secret is drawn
    before = {artefact: run("predict", "--model", artefact, "--json", *TEXTS) for artefact in artefacts}
    for artefact, (outcome, _) in before.items():
        if outcome != "answered":
            yield f"{FAULT}{artefact.name} is {outcome} undamaged"
            return
    for _ in range(count):
        artefact = chance.choice(artefacts)
        copy = Path(shutil.copytree(artefact, place / "damaged", symlinks=True))
        path = chance.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        how = _damage(path, chance)
        outcome, answers = run("predict", "--model", copy, "--json", *TEXTS)
        if outcome == "answered" and answers != before[artefact][1]:
            outcome = f"{FAULT}other answers"
        yield f"damaged: {outcome}" + _if_fault(outcome, f"{artefact.name}, {path.name} {how}")
        shutil.rmtree(copy)


def garbles(run_file: Path, checkpoint: Path, dataset: Path, count: int, seed: int, place: Path) -> Iterator[str]:
    """Garble saved runs, configurations, datasets and options, a quarter of `count` each; yield the outcomes.

    A garbled run is refused or gives the figures of the whole one. The others may be answered: the result of garbling
    can be valid.
    """
    each = -(-count // 4)
    yield from _garbled_runs(run_file, each, seed, place)
    judge = ("evaluate", "--variants", "fp32", "--documents", "3", "--max-length", "16")
    copy = Path(shutil.copytree(checkpoint, place / "checkpoint"))
    for what, content in damage.broken_configurations((checkpoint / "config.json").read_bytes(), seed, each):
        (copy / "config.json").write_bytes(content)
        outcome, _ = run(*judge, "--model", copy, "--dataset", dataset)
        yield f"configuration: {outcome}" + _if_fault(outcome, what)
    files = {path.name: path.read_bytes() for path in dataset.iterdir()}
    copy = Path(shutil.copytree(dataset, place / "dataset"))
    for what, contents in damage.broken_datasets(files, seed, each):
        for name, content in contents.items():
            (copy / name).write_bytes(content)
        outcome, _ = run(*judge, "--model", checkpoint, "--dataset", copy)
        yield f"dataset: {outcome}" + _if_fault(outcome, what)
    for command, option, value in damage.broken_options(seed, each):
        shutil.rmtree(place / "output", ignore_errors=True)
        required = {
            "train": {"--dataset": dataset, "--base": "bert-tiny", "--output": place / "output", "--epochs": 1},
            "evaluate": {"--dataset": dataset, "--model": checkpoint, "--variants": "fp32", "--documents": 3},
            "quantize": {"--model": checkpoint, "--variant": "int8-dynamic-onednn", "--output": place / "output"},
            "predict": {"--model": checkpoint},
        }[command[0]]
        given = {"--max-length": 16} | required | {option: value}
        with contextlib.chdir(place):  # a value may name a file to write
            outcome, _ = run(*command, *(f"{name}={one}" for name, one in given.items()))
        yield f"option: {outcome}" + _if_fault(outcome, f"{command[0]} {option} {value[:40]!r}")


def _garbled_runs(run_file: Path, count: int, seed: int, place: Path) -> Iterator[str]:
    """Yield the outcomes of report on garbled copies of `run_file`: refused, or the figures of the whole one."""
    copy, figures = place / "run.json", place / "figures.csv"
    copy.write_bytes(run_file.read_bytes())
    outcome, _ = run("report", copy, "--csv", figures)
    if outcome != "answered":
        yield f"{FAULT}the whole run is {outcome}"
        return
    whole = figures.read_text()
    for what, content in garble.garbled_runs(run_file.read_bytes(), seed, count):
        copy.write_bytes(content)
        figures.unlink(missing_ok=True)
        outcome, _ = run("report", copy, "--csv", figures)
        if outcome == "answered" and figures.read_text() != whole:
            outcome = f"{FAULT}other figures"
        yield f"saved run: {outcome}" + _if_fault(outcome, what)


def _if_fault(outcome: str, what: str) -> str:
    return f" ({what})" if FAULT in outcome else ""


def campaign(
    checkpoint: Path, dataset: Path, run_file: Path, count: int, seed: int, place: Path, variants: list[str]
) -> Counter[str]:
    """Kill, damage and garble `count` times each in the folder `place`; return the number of each outcome."""
    work = {name: place / name for name in ("kills", "artefacts", "damages", "garbles")}
    for folder in work.values():
        folder.mkdir()
    served = ("--model", str(checkpoint), "--dataset", str(dataset))

    def is_html(page: Path) -> bool:
        return page.read_text().rstrip().endswith("</html>")

    def is_artefact(folder: Path) -> bool:
        return run("predict", "--model", folder, *TEXTS)[0] == "answered"

    output = work["kills"] / "page.html"
    commands = [Command("report", ("report", str(run_file), "-o", str(output)), output, is_html)]
    output = work["kills"] / "judged.json"
    judge = ("evaluate", *served, "--variants", "fp32", "--documents", "20", "--json", str(output))
    commands.append(Command("evaluate", judge, output, lambda path: len(json.loads(path.read_text())) == 1))
    for variant in variants:
        output = work["kills"] / variant
        make = ("quantize", *served, "--variant", variant, "--max-length", "16", "--output", str(output))
        commands.append(Command(f"quantize {variant}", make, output, is_artefact))
        artefact = work["artefacts"] / variant
        run("quantize", *served, "--variant", variant, "--max-length", "16", "--output", artefact)
    return Counter(
        itertools.chain(
            kills(commands, count, seed),
            damages(sorted(work["artefacts"].iterdir()), count, seed, work["damages"]),
            garbles(run_file, checkpoint, dataset, count, seed, work["garbles"]),
        )
    )


def main() -> None:
    """Make a small model, its artefacts and a saved run; kill, damage and garble; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="of each: kills, damages, garbled inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, required=True, help="a saved run (pytest bench/ --benchmark-json FILE)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {"QBERT_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
        from qbert import variants
        from qbert.inputs import dataset, training

        news = dataset.load("news_mini")
        recipe = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
        checkpoint = training.train(news, "bert-tiny", place / "tiny", max_length=16, recipe=recipe).folder
        names = [row.name for row in variants.select("all") if row.runtime != "TorchInductor"]  # minutes for each
        counts = campaign(checkpoint, news.folder, options.run, options.count, options.seed, place, names)
    for outcome, count in sorted(counts.items()):
        print(f"{count:5} {outcome}")
    sys.exit(any(FAULT in outcome for outcome in counts))


if __name__ == "__main__":
    main()
