#!/usr/bin/env bash
# nncf 3.4.0, openvino 2026.4.1, numpy 2.4.6.
#
# `nncf.quantize_with_accuracy_control` quantizes a model, and where the metric drops too far it gives operations back
# their original precision, the most harmful first. One expects that each one given back brings the model nearer to the
# original, and that with all of them given back it is the original.
#
# For a transformer (`model_type`) it is not. SmoothQuant comes first: it multiplies a weight's input channels by a scale
# and puts a Multiply by the reciprocal before the product. `_collect_original_biases_and_weights` in
# nncf/quantization/algorithms/accuracy_control/algorithm.py takes the weights of the model before that, and
# `revert_operations_to_floating_point_precision` in nncf/common/quantization/quantizer_removal.py puts these back,
# while the Multiply stays. Activations are divided and nothing multiplies them again.
#
# It matters because the search is led by the metric: here the first step makes the model far worse than quantized, so
# the control goes on, gives everything back, and returns a model that is neither quantized nor the original; a line of
# its log says that the drop was not achieved. With SmoothQuant off the same call returns the original.
#
# The model here has two products, each after a layer normalization; the gain of the first has three channels of 60
# among 61 of 1. Errors are relative to the original's output, root mean square.
#
# Seen (Python 3.11, Linux, x86-64):
#   SmoothQuant on
#   INFO:nncf:Accuracy drop with the new quantization scope is 0.6543216713054869 (absolute)
#   error quantized 0.045, with all given back 0.976
#   quantizers left 0, before the products Multiply, Multiply
#   SmoothQuant off
#   INFO:nncf:Accuracy drop with the new quantization scope is 0.009731641600035701 (absolute)
#   error quantized 0.072, with all given back 0.000
#   quantizers left 0, before the products Add, Add
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6

cat >control.py <<'EOF'
import sys

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as op

WIDTH, TOKENS = 64, 16
random = np.random.default_rng(0)


def normalized(values, gain):
    normal = op.mvn(values, np.array([-1]), True, 1e-6, "INSIDE_SQRT")
    return op.add(op.multiply(normal, gain), np.zeros(WIDTH, np.float32))


def product(values, name):
    weight = (random.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
    return op.matmul(values, op.constant(weight), False, True, name=name)


gain = np.ones(WIDTH, np.float32)
gain[[3, 17, 40]] = 60
inputs = op.parameter([1, TOKENS, WIDTH], np.float32, name="x")
first = op.relu(op.add(product(normalized(inputs, gain), "first"), np.zeros(WIDTH, np.float32)))
second = product(normalized(first, np.ones(WIDTH, np.float32)), "second")
original = ov.Model([op.result(second)], [inputs], "two_products")
samples = [random.normal(size=(1, TOKENS, WIDTH)).astype(np.float32) for _ in range(32)]


def run(model):
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(sample)[0] for sample in samples])


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


truth = run(original)


def validate(compiled, items):
    """Return one less the error, and how near each item is to the original's output."""
    near = [-rms(compiled(samples[number])[0] - truth[number]) / rms(truth) for number in items]
    return 1 + float(np.mean(near)), near


def controlled(smooth):
    parameters = nncf.AdvancedQuantizationParameters()
    if not smooth:
        parameters.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=-1)
    common = {"model_type": nncf.ModelType.TRANSFORMER}
    print("SmoothQuant", "on" if smooth else "off", flush=True)
    quantized = nncf.quantize(original, nncf.Dataset(samples), advanced_parameters=parameters, **common)
    restored = nncf.quantize_with_accuracy_control(
        original,
        nncf.Dataset(samples),
        nncf.Dataset(list(range(len(samples)))),
        validate,
        max_drop=0.001,
        advanced_quantization_parameters=parameters,
        **common,
    )
    left = [node for node in restored.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    products = [node for node in restored.get_ordered_ops() if node.get_type_name() == "MatMul"]
    sources = ", ".join(node.input_value(0).get_node().get_type_name() for node in products)
    errors = [rms(run(model) - truth) / rms(truth) for model in (quantized, restored)]
    print(f"error quantized {errors[0]:.3f}, with all given back {errors[1]:.3f}")
    print(f"quantizers left {len(left)}, before the products {sources}", flush=True)
    return errors[1], left


(smooth, left), (plain, left_plain) = controlled(True), controlled(False)
sys.exit(0 if not left and not left_plain and smooth > 0.1 and plain < 1e-6 else 1)
EOF
if env/bin/python control.py >out 2>&1; then
  grep -E "^SmoothQuant|new quantization scope|^error|^quantizers" out
  echo "seen: what is given back is not the original"
else
  cat out
  echo "no longer seen"
  exit 1
fi
