"""Train a classifier, regressor or ranker: fine-tune a pretrained checkpoint, or a small BERT from scratch."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs import metrics
from qbert.inputs import tokenizer as tokenizers
from qbert.inputs.checkpoint import Checkpoint, locate
from qbert.inputs.configuration import ACTIVATION_KEYS
from qbert.inputs.dataset import Dataset, text_rows
from qbert.inputs.dataset import load as load_dataset
from qbert.inputs.labels import IDENTITY, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from qbert.system import machine
from qbert.system.cache import build_folder, is_filled
from qbert.system.errors import InputError
from qbert.system.parse import read_bytes
from qbert.system.record import write_record
from qbert.system.terminal import echo, progress, quiet_transformers
from qbert.system.worker import end_with_parent

if TYPE_CHECKING:
    import pandas as pd
    from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerBase

GEOMETRIES = {
    "bert-tiny": (2, 128),
    "bert-mini": (4, 256),
    "bert-small": (4, 512),
    "bert-medium": (8, 512),
    "bert-base": (12, 768),
}
"""Layers and hidden size of each BERT that is built from scratch; its heads are 64 wide.

Source: Turc et al. 2019, "Well-Read Students Learn Better", table 1.
"""

POSITIONS = 512
UNKNOWN = "[UNK]"
SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_SIZE = 8_000  # all Chinese characters in a news collection, or the common words of another language
BERT_BASE_CHINESE_VOCABULARY_SIZE = 21_128


@dataclass(frozen=True)
class Recipe:
    """The settings of one training."""

    epochs: int
    learning_rate: float
    batch_size: int
    warmup: float
    """Share of the steps over which the learning rate rises."""
    masked: float
    """Share of the tokens replaced by [MASK] at each step, against overfitting."""
    shortest: float
    """The least share of `max_length` at which a batch of single texts is cut off; the length is random."""


SHORT = 128
"""Tokens at which a built-in model is trained first; one for longer texts goes on from there."""


def recipe_for(base: str, documents: int, *, goes_on: bool = False) -> Recipe:
    """Return the default settings for `base` on `documents` training documents.

    For pretrained weights they are the published experiment's. From scratch, about 6,400 texts in small
    batches: on 370 documents, masking 15 % of the tokens gained 3 points of F1 over masking none; cutting
    off batches saves a third of the time, and seeds differ by 2 points of F1 instead of 6. One that `goes_on` from
    shorter texts sees about 1,500: at 256 and 384 tokens BERT-tiny had the F1 of four times as many from scratch.
    """
    if goes_on:
        epochs = max(1, round(1_500 / documents))
        return Recipe(epochs, learning_rate=5e-4, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    if base in GEOMETRIES:
        epochs = max(3, round(6_400 / documents))
        return Recipe(epochs, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    return Recipe(epochs=3, learning_rate=5e-5, batch_size=32, warmup=0.2, masked=0.0, shortest=1.0)


def train(
    dataset: Dataset,
    base: str,
    output: Path,
    *,
    max_length: int,
    seed: int = 0,
    vocab: Path | None = None,
    recipe: Recipe | None = None,
    shorter: Path | None = None,
) -> Checkpoint:
    """Train `base` on the dataset's training split and write the checkpoint folder `output`.

    `base` is a key of GEOMETRIES (from scratch, with a vocabulary learned from the training texts or read
    from the file `vocab`), a checkpoint folder or a hub id. To go on from, `shorter` is the folder of a checkpoint of
    that base, trained on the same texts at fewer tokens.

    Raises:
        InputError: base, vocabulary or length cannot be used, or `output` exists already.
    """
    if is_filled(output):
        raise InputError(f"{output} exists already: remove it or name another folder")
    recipe = recipe or recipe_for(base, len(dataset.train), goes_on=shorter is not None)
    model, tokenizer = _start(dataset, str(shorter or base), max_length, seed, vocab)

    def build(folder: Path) -> None:
        start = time.perf_counter()
        metrics = _run(model, tokenizer, dataset, folder, max_length, seed, recipe)
        model.save_pretrained(folder, save_original_format=False)  # else under the names of the base's file
        tokenizer.save_pretrained(folder)
        write_record(
            folder,
            {
                "base": base,
                "dataset": dataset.name,
                "dataset_sha256": dataset.sha256,
                "max_length": max_length,
                "metrics": metrics | {"seconds": round(time.perf_counter() - start, 1)},
                "recipe": dataclasses.asdict(recipe),
                "seed": seed,
                "versions": machine.versions(),
                **({"shorter_sha256": Checkpoint(shorter).sha256} if shorter else {}),
            },
        )

    with quiet_transformers():
        return Checkpoint(build_folder(output, build))


def write_untrained(dataset: Dataset, base: str, folder: Path, seed: int = 0) -> None:
    """Write a checkpoint of random weights to the empty `folder`, for latency: its labels mean nothing."""
    model, tokenizer = _start(dataset, base, POSITIONS, seed, None, vocabulary_size=BERT_BASE_CHINESE_VOCABULARY_SIZE)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_record(folder, {"base": base, "seed": seed, "untrained": True, "versions": machine.versions()})


def check_length(base: str, max_length: int) -> None:
    """Raise InputError where a model of GEOMETRIES cannot take texts of `max_length` tokens."""
    tokenizers.check_length(base, POSITIONS, 2, max_length)  # [CLS] and [SEP]


def learn_vocabulary(texts: Iterable[str]) -> "BertTokenizer":
    """Return a BERT tokenizer whose WordPiece vocabulary is learned from `texts`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.trainers import WordPieceTrainer
    from transformers import BertTokenizer

    texts = list(texts)
    bert = BertTokenizer().backend_tokenizer
    learner = Tokenizer(WordPiece(unk_token=UNKNOWN))
    learner.normalizer, learner.pre_tokenizer = bert.normalizer, bert.pre_tokenizer
    # The trainer numbers continuations in the order of a hash table, which differs each time, and breaks ties by
    # number. As special tokens they get fixed numbers, so equal texts give an equal vocabulary.
    continuations = {
        character
        for text in texts
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(text))
        for character in word[1:]
    }
    trainer = WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in sorted(continuations))],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=learner.get_vocab())


def read_vocabulary(path: Path) -> "BertTokenizer":
    """Return a BERT tokenizer with the WordPiece vocabulary in `path`, one token a line.

    Raises:
        InputError: the file cannot be read or lacks BERT's special tokens.
    """
    from transformers import BertTokenizer

    remedy = "give a text file with a token on each line"
    try:
        text = read_bytes(path, remedy).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"vocabulary {path} cannot be read ({error}): {remedy}") from error
    tokens = text.removesuffix("\n").split("\n")  # not splitlines: U+2028 is a token
    lacking = [token for token in SPECIAL_TOKENS if token not in tokens]
    if lacking:
        raise InputError(f"vocabulary {path} lacks {', '.join(lacking)}: give a BERT vocabulary (vocab.txt)")
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


@quiet_transformers()
def _start(
    dataset: Dataset, base: str, max_length: int, seed: int, vocab: Path | None, vocabulary_size: int = 0
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model to train, with a head for the dataset's labels or numbers, and its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    names = dict(enumerate(dataset.label_names or ("LABEL_0",)))
    labels: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
        "problem_type": _problem_type(dataset),
    }
    if base not in GEOMETRIES:
        if vocab is not None:
            raise InputError(
                f"--vocab goes with a base trained from scratch ({', '.join(GEOMETRIES)}): leave it out for {base}"
            )
        try:
            checkpoint = Checkpoint.open(locate(base), as_base=True)
        except InputError as error:
            raise InputError(f"{error}; from scratch there are {', '.join(GEOMETRIES)}") from error
        checkpoint.check_length(max_length)
        checkpoint.encoder.check_pairs(dataset)
        model = checkpoint.load(seed=seed, num_labels=len(names), **labels)
        for name in ACTIVATION_KEYS:  # of the base's output: the error is that of the logit
            if hasattr(model.config, name):
                delattr(model.config, name)
        return model, checkpoint.encoder.tokenizer
    check_length(base, max_length)
    layers, hidden = GEOMETRIES[base]
    texts = [text for row in text_rows(dataset.train) for text in row]
    tokenizer = read_vocabulary(vocab) if vocab else learn_vocabulary(texts)
    config = BertConfig(
        vocab_size=max(*tokenizer.get_vocab().values(), vocabulary_size - 1) + 1,
        max_position_embeddings=POSITIONS,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        attention_probs_dropout_prob=0.0,  # dropout here prevents fused attention: steps take nearly twice as long
        pad_token_id=tokenizer.pad_token_id,
        **labels,
    )
    set_seed(seed)
    return BertForSequenceClassification(config), tokenizer


def _problem_type(dataset: Dataset) -> str:
    if not dataset.label_names:
        return REGRESSION
    return MULTI_LABEL if dataset.multi_label else SINGLE_LABEL


def _encode(
    tokenizer: "PreTrainedTokenizerBase", dataset: Dataset, rows: "pd.DataFrame", max_length: int
) -> list[dict[str, Any]]:
    pairs = list(rows["text_pair"]) if "text_pair" in rows else None
    tokens = tokenizer(list(rows["text"]), pairs, truncation=True, max_length=max_length)
    labels = dataset.indicators(rows).astype(float).tolist() if dataset.multi_label else rows["label"].tolist()
    return [{name: tokens[name][row] for name in tokens} | {"labels": label} for row, label in enumerate(labels)]


def _collator(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", shortest: int, longest: int, masked: float
) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a function that pads rows to a batch; in training, cut off at a random length and with tokens masked."""
    import torch
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer)
    special = torch.tensor(tokenizer.all_special_ids)

    def cut(values: list[int], length: int) -> list[int]:
        return values[: length - 1] + values[length - 1 :][-1:]  # [SEP] remains at the end

    def collate(rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401  a BatchEncoding of tensors
        if model.training and shortest < longest:
            length = int(torch.randint(shortest, longest + 1, ()))
            rows = [
                {name: value if name == "labels" else cut(value, length) for name, value in row.items()} for row in rows
            ]
        batch = pad(rows)
        if model.training and masked:
            tokens = batch["input_ids"]
            replaced = (torch.rand(tokens.shape) < masked) & ~torch.isin(tokens, special)
            batch["input_ids"] = tokens.masked_fill(replaced, tokenizer.mask_token_id)
        return batch

    return collate


def _run(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: Dataset,
    folder: Path,
    max_length: int,
    seed: int,
    recipe: Recipe,
) -> dict[str, float]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    shortest = max_length if "text_pair" in dataset.train else max(3, round(recipe.shortest * max_length))
    steps = recipe.epochs * math.ceil(len(dataset.train) / recipe.batch_size)
    with progress(f"training at {max_length} tokens, step", steps) as advance:

        class Show(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
                advance(state.global_step)

        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                per_device_train_batch_size=recipe.batch_size,
                per_device_eval_batch_size=recipe.batch_size,
                warmup_steps=recipe.warmup or 0,
                weight_decay=0.01,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,  # so that a loss of nan appears in the mean
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=_encode(tokenizer, dataset, dataset.train, max_length),
            data_collator=_collator(model, tokenizer, shortest, max_length, recipe.masked),
            callbacks=[Show()],
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    if not math.isfinite(loss):
        raise InputError(f"training diverged (its loss is {loss}): take a lower --learning-rate")
    test = _encode(tokenizer, dataset, dataset.test, max_length)
    # A dataset may be any sequence; predictions of a classifier are one array.
    logits = trainer.predict(test).predictions  # type: ignore[arg-type]
    metric = metrics.of(_problem_type(dataset), dataset, IDENTITY)
    score = metric.score(metric.truth(dataset, dataset.test), metric.answers(logits))  # type: ignore[arg-type]
    return {"training_loss": round(float(loss), 4), metric.of_test: round(score, 4)}


def main(request: str) -> None:
    """Train as the JSON object `request` says: the arguments of `train`, of which `folder` is the output."""
    options = json.loads(request)
    folder, dataset, base = Path(options.pop("folder")), options.pop("dataset"), options.pop("base")
    shorter = options.pop("shorter")
    try:
        train(load_dataset(dataset), base, folder, shorter=shorter and Path(shorter), **options)
    except InputError as error:
        echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1])
