#!/usr/bin/env bash
# onnxruntime 1.32.0, transformers 5.24.0, torch 2.13.0, onnx 1.23.2, numpy 2.4.6.
#
# One expects `onnxruntime.transformers.optimizer.optimize_model` to change how fast a graph runs, and to leave alone
# what it does not know: that is what it does with a model whose shapes it cannot match.
#
# Two models of BERT's shape, exported with eager attention and optimized as "bert", answer otherwise than before:
# - A BERT with `is_decoder`: its tokens see those after them. transformers 5 exports the mask as an And of "not later"
#   and "not padding". The pattern for it (fusion_attention.py, "Transformers 5 eager attention mask") follows the And to
#   the padding alone, and the Attention node that replaces all of it has no `unidirectional`.
# - An ERNIE with task embeddings: they are gone, and so is the graph's input. Where a SkipLayerNormalization adds a
#   fourth embedding, `fuse` (fusion_embedlayer.py) notes its Gather as `optional_segment_gather`, which `fuse_bert` does
#   not take; the EmbedLayerNormalization has words, positions and token types.
#
# It matters because nothing is logged, the graph has all the fusions that one looks for (Attention in each layer, one
# EmbedLayerNormalization), and of the ERNIE it is even faster. Only the comparison of outputs shows it.
#
# The models are random, of two layers; the text has 12 tokens and no padding. A difference is the greatest of the last
# hidden states, which are about 1.
#
# Seen (Python 3.11, Linux, x86-64):
#   encoder: exported 0.0000, optimized 0.0000; inputs 3, then 3
#   decoder: exported 0.0000, optimized 2.8036; inputs 3, then 3
#   ernie: exported 0.0000, optimized 1.2709; inputs 4, then 3
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check \
  onnxruntime==1.32.0 transformers==5.24.0 torch==2.13.0 onnx==1.23.2 numpy==2.4.6

cat >fusions.py <<'EOP'
import logging
import sys

import numpy as np
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from transformers import BertConfig, BertModel, ErnieConfig, ErnieModel

logging.disable(logging.WARNING)
SIZE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}
BERT = ["input_ids", "attention_mask", "token_type_ids"]


class Positional(torch.nn.Module):
    """A model that takes its inputs in the order of `names`."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        options = {"use_cache": False} if self.model.config.is_decoder else {}
        return self.model(**dict(zip(self.names, values)), **options).last_hidden_state


def answer(path, values):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, {name: values[name].numpy() for name in names})[0], len(names)


def differences(title, model, names):
    ids = torch.arange(5, 17)[None]
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    every = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros, "task_type_ids": ones}
    values = {name: every[name] for name in names}
    positional = Positional(model, names).eval()
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(
        positional, tuple(values.values()), "exported.onnx", input_names=names, output_names=["hidden"],
        dynamic_axes=axes, dynamo=False, opset_version=18,
    )
    optimizer.optimize_model(
        "exported.onnx", model_type="bert", num_heads=2, hidden_size=32, opt_level=0
    ).save_model_to_file("optimized.onnx")
    with torch.no_grad():
        expected = positional(*values.values()).numpy()
    (exported, before), (optimized, after) = (answer(f"{name}.onnx", values) for name in ("exported", "optimized"))
    errors = [float(np.abs(found - expected).max()) for found in (exported, optimized)]
    print(f"{title}: exported {errors[0]:.4f}, optimized {errors[1]:.4f}; inputs {before}, then {after}", flush=True)
    return errors


torch.manual_seed(0)
encoder = differences("encoder", BertModel(BertConfig(**SIZE)), BERT)
decoder = differences("decoder", BertModel(BertConfig(**SIZE, is_decoder=True)), BERT)
ernie = ErnieModel(ErnieConfig(**SIZE, use_task_id=True, task_type_vocab_size=3))
tasks = differences("ernie", ernie, [*BERT, "task_type_ids"])
exact = max(*encoder, decoder[0], tasks[0]) < 1e-4
sys.exit(0 if exact and min(decoder[1], tasks[1]) > 0.1 else 1)
EOP
if env/bin/python -W ignore fusions.py >out 2>&1; then
  grep "exported" out
  echo "seen: the optimized decoder and ERNIE answer otherwise"
else
  cat out
  echo "no longer seen"
  exit 1
fi
