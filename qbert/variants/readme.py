"""The README.md of an artefact: what it is, and how to load it with and without qbert."""

from collections.abc import Mapping
from typing import Any

from qbert.inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from qbert.system.errors import EXTRAS, pip_install_released
from qbert.variants.base import Variant, qualified

README = "README.md"

ENCODED = """
{splitting}tokenizer.enable_truncation({max_length}, direction="{truncation_side}")
tokenizer.{padding}
text = tokenizer.encode("...")
arrays = {{"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}}
"""

ONNX_RUNTIME = (
    """import json
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

session = InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file("tokenizer.json")
"""
    + ENCODED
    + """logits = session.run(None, {{node.name: np.array([arrays[node.name]]) for node in session.get_inputs()}})[0][0]
labels = json.load(open("config.json", encoding="utf-8"))["id2label"]
print({{labels[str(number)]: float(logit) for number, logit in enumerate(logits)}})
"""
)

OPENVINO = (
    """import json
import numpy as np
import openvino
from tokenizers import Tokenizer

model = openvino.Core().compile_model("openvino_model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})
tokenizer = Tokenizer.from_file("tokenizer.json")
"""
    + ENCODED
    + """logits = model({{port.any_name: np.array([arrays[port.any_name]]) for port in model.inputs}})[0][0]
labels = json.load(open("config.json", encoding="utf-8"))["id2label"]
print({{labels[str(number)]: float(logit) for number, logit in enumerate(logits)}})
"""
)

TRANSFORMERS = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".", dtype=torch.{dtype})
tokenizer = AutoTokenizer.from_pretrained(".")

with torch.inference_mode():
    logits = model(**tokenizer("...", truncation=True, max_length={max_length}, return_tensors="pt")).logits[0]
print({{model.config.id2label[number]: float(logit) for number, logit in enumerate(logits)}})
"""

TORCHINDUCTOR = """import torch
from transformers import AutoTokenizer

model = torch._inductor.aoti_load_package("model.pt2")
tokenizer = AutoTokenizer.from_pretrained(".")

arrays = tokenizer("...", truncation=True, max_length={max_length}, return_tensors="pt")
with torch.inference_mode():
    print(model(*(arrays[name] for name in {inputs})))
"""

OPTIMUM = """from optimum.intel import OVModelForSequenceClassification

model = OVModelForSequenceClassification.from_pretrained(".")
"""

WITHOUT_QBERT = {
    "qbert.variants.eager.load": TRANSFORMERS,
    "qbert.variants.inductor.load": TORCHINDUCTOR,
    "qbert.variants.onnxruntime.load": ONNX_RUNTIME,
    "qbert.variants.openvino.load": OPENVINO,
}
"""Code that loads an artefact without qbert, run in its folder, by the function that loads it with qbert."""
OWN = "As the module that adds the variant does.\n"
QBERT_ALONE = "No other library runs it: the int8 weights are in a safetensors file, in a layout that is qbert's own.\n"


def text(variant: Variant, model: str, record: Mapping[str, Any]) -> str:
    """Return the README of the artefact that `variant` made of the checkpoint `model`; `record` is its qbert.json."""
    labels = ", ".join(record["labels"])
    kinds = {SINGLE_LABEL: "one label a text", MULTI_LABEL: "any number of labels a text"}
    listed = f"labels: {labels} ({kinds.get(record['problem_type'])})"
    noun, answer = "classifier", "label"
    if record["problem_type"] == REGRESSION:
        listed = f"output: {record['activation']} of the logit" if "activation" in record else "output: the logit"
        noun, answer = "regressor or ranker", "score"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    side = "end" if record["truncation_side"] == "right" else "beginning"
    needed = variant.to_load
    return f"""# {model} as {variant.name}

A text {noun} for CPUs, written by `qbert quantize`: {model} in {variant.precision}, run by {variant.runtime}.

- {listed}
- texts are cut off at {record["max_length"]} tokens, at their {side}; it takes {record["positions"]} at most
- made with {versions}

`qbert.json` says what it was made of, `files.sha256` holds the checksums (`sha256sum -c files.sha256`).

## Load it

With qbert (`{pip_install_released(*dict.fromkeys(EXTRAS[name] for name in needed if name in EXTRAS))}`):

```python
import qbert
{f"import {record['module']}  # adds the variant{chr(10)}" if record["module"] else ""}
classifier = qbert.load(".")
print(classifier("...").{answer})
```

Without:

{_without(variant, record)}"""


def _without(variant: Variant, record: Mapping[str, Any]) -> str:
    template = WITHOUT_QBERT.get(qualified(variant.load))
    if template is None:
        return QBERT_ALONE if qualified(variant.load).startswith("qbert.") else OWN
    padding = f"enable_padding(length={record['positions']})" if variant.of_one_length else "no_padding()"
    lines = template.format(
        dtype=variant.options.get("dtype", "float32"),
        hint=variant.options.get("hint", "f32"),
        inputs=tuple(record["inputs"]),
        max_length=record["max_length"],
        padding=padding,
        splitting="tokenizer.encode_special_tokens = True\n" if record["split_special_tokens"] else "",
        truncation_side=record["truncation_side"],
    )
    code = f"```python\n{lines}```\n"
    if template is OPENVINO:
        code += f"\nOr with optimum-intel, whose tokenizer is that of transformers:\n\n```python\n{OPTIMUM}```\n"
    return code
