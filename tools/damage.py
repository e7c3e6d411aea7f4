"""Broken checkpoints, datasets and options, chosen by a seed, which a campaign gives to commands."""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

DEEP = 100_000
ODD_VALUES = (
    *("null", "true", "false", '""', '"x"', '"-1"', '"\\u0000"', '"../../x"', '"https://example.invalid/x"'),
    *(
        "-1",
        "0",
        "1",
        "2",
        "3",
        "1.5",
        "-0.0",
        "1e308",
        "NaN",
        "Infinity",
        "1000000000",
        "1" + "0" * 30,
        "-" + "9" * 30,
    ),
    *("[]", "[[]]", "[null]", "{}", '{"a": {"b": []}}', '{"0": 0}', '{"0": "x", "2": "y"}'),
    "[" * DEEP + "]" * DEEP,
    '"' + "y" * DEEP + '"',
)
"""JSON values that are valid for no key."""
ODD_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    "1e-400",
    "4294967296",
    "1" + "0" * 30,
    "0x10",
    "",
    " ",
    "x",
    "1,5",
)
ODD_PLACES = (
    "",
    "/",
    "/dev/null",
    "/dev/zero",
    "/dev/stdin",
    "x" * 5_000,
    "x/" * 2_500,
    "\udcff",
    "-",
    "~",
    "a b\tc",
    "%s{0}",
)
OPTIONS = {
    ("train",): {
        "--seed",
        "--max-length",
        "--epochs",
        "--learning-rate",
        "--batch-size",
        "--warmup",
        "--vocab",
        "--base",
    },
    ("evaluate",): {"--model", "--dataset", "--variants", "--max-length", "--documents", "--json"},
    ("quantize",): {"--model", "--variant", "--dataset", "--max-length"},
    ("predict", "text"): {"--model", "--variant", "--dataset", "--max-length"},
}
"""Options of the commands that take a model or a dataset."""
PLACES = {"--model", "--dataset", "--json", "--vocab", "--base", "--variant", "--variants"}
HEADERS = ("text,label", "text,labels", "text,text_pair,label", "label", "text", "text,label,labels", "", "text;label")
FIELDS = (
    *("a", "b|c", "0", "1", "0|1", "|", "-1", "9" * 30, " ", '"', '"a\n', "\x00", "\ud800", "x" * 200_000),
    "=1+1",
    "é",
)


def broken_json(content: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damages of the JSON object in `content`: a description, and the damaged content.

    A value anywhere is replaced by an odd one or removed, or the whole is cut off, doubled or has other bytes.
    """
    rng = random.Random(seed)  # noqa: S311  a campaign can be repeated
    places = list(_places(json.loads(content)))
    for _ in range(count):
        if rng.random() < 0.15:
            yield broken_bytes(content, rng)
            continue
        place, odd = rng.choice(places), rng.choice([*ODD_VALUES, ""])
        yield f"{'.'.join(map(str, place))} is {odd[:40] or 'gone'}", _replaced(content, place, odd)


def broken_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a damage of a file's `content`, of any format: a description, and the damaged content."""
    at = rng.randrange(len(content) + 1)
    kind = rng.choice(["cut off", "empty", "doubled", "other bytes", "lost bytes", "not UTF-8", "a list"])
    return f"{kind} at {at}", {
        "cut off": content[:at],
        "empty": b"",
        "doubled": content * 2,
        "other bytes": content[:at] + rng.randbytes(8) + content[at + 8 :],
        "lost bytes": content[:at] + content[at + 8 :],
        "not UTF-8": content[:at] + b"\xff\xfe" + content[at:],
        "a list": b"[" + content + b"]",
    }[kind]


def broken_configurations(config: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` broken forms of a config.json: those of broken_json, and others with odd values of known keys."""
    rng = random.Random(seed)  # noqa: S311
    keys = (
        *("num_labels", "id2label", "label2id", "problem_type", "architectures", "auto_map", "quantization_config"),
        *("_attn_implementation", "attn_implementation", "max_position_embeddings", "num_hidden_layers", "vocab_size"),
        *("dtype", "torch_dtype", "pruned_heads", "text_config", "is_decoder", "tokenizer_class", "output_attentions"),
    )
    values = (
        *(*ODD_VALUES, '"kernels-community/flash-attn"', '"flash_attention_2"', '{"AutoConfig": "own.Own"}'),
        *('["BertForTokenClassification"]', '["BertForQuestionAnswering", "BertModel"]', '{"quant_method": "gptq"}'),
        *('"regression"', '"float99"', '{"0": [0, 1, 2]}'),
    )
    for number, (what, broken) in enumerate(broken_json(config, seed, count)):
        if number % 2:
            yield what, broken
        else:
            key, value = rng.choice(keys), rng.choice(values)
            yield f"{key} is {value[:40]}", _replaced(config, (key,), value)


def broken_datasets(files: Mapping[str, bytes], seed: int, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield `count` damages of a dataset's `files`, which are by name: a description, and the files after it."""
    rng = random.Random(seed)  # noqa: S311
    for number in range(count):
        name = ("train.csv", "test.csv", "label.json")[number % 3]
        if name == "label.json":
            what, broken = next(broken_json(files[name], rng.randrange(2**32), 1))
        elif number % 2:
            what, broken = broken_bytes(files[name], rng)
        else:
            header = rng.choice(HEADERS)
            rows = [",".join(rng.choices(FIELDS, k=rng.choice([1, 2, 2, 2, 3]))) for _ in range(rng.randrange(4))]
            what, broken = f"{header!r} and {len(rows)} rows", "\n".join([header, *rows]).encode(errors="surrogatepass")
        yield f"{name}: {what}", {**files, name: broken}


def broken_options(seed: int, count: int) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield `count` commands, each with one option and an odd value for it; the caller adds the other options."""
    rng = random.Random(seed)  # noqa: S311
    options = [(command, option) for command, names in OPTIONS.items() for option in sorted(names)]
    for _ in range(count):
        command, option = rng.choice(options)
        yield command, option, rng.choice(ODD_PLACES if option in PLACES else ODD_NUMBERS)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of keys to each value; of a long list or object, only to its first 40."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in [*inside][:40]:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _replaced(content: bytes, place: tuple[str | int, ...], odd: str) -> bytes:
    """Return the JSON `content` with the JSON `odd` at the path `place`, or with nothing there if `odd` is empty."""
    whole = json.loads(content)
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    if odd or isinstance(parent, list):
        parent[place[-1]] = "the odd value"
    else:
        parent.pop(place[-1], None)
    return json.dumps(whole).replace('"the odd value"', odd or "null").encode()
