"""Variants of ONNX Runtime and OpenVINO for texts that fill the maximum length: a plugin.

Their graphs are of one length, to which shorter texts are padded, and compute the last layer for the first token alone.

PYTHONPATH=examples qbert -p trimmed bench --variants int8-openvino,int8-openvino-trimmed
"""

from functools import partial

from qbert.variants import Variant, onnxruntime, openvino, register

openvino_variant = partial(
    Variant,
    runtime="OpenVINO",
    load=openvino.load,
    options={"hint": "f32"},
    packages_to_load=("openvino",),
    needs="openvino",
    default=False,
)

register(
    Variant(
        "int8-onnxruntime-trimmed",
        "ONNX Runtime",
        "int8",
        onnxruntime.load,
        onnxruntime.export_trimmed,
        options={"int8": True},
        packages=("onnx", "onnxruntime"),
        packages_to_load=("onnxruntime",),
        needs="onnxruntime",
        default=False,
    )
)
register(
    openvino_variant("fp32-openvino-trimmed", precision="fp32", export=openvino.export_trimmed, packages=("openvino",))
)
register(
    openvino_variant(
        "int8-openvino-trimmed",
        precision="int8",
        export=openvino.export_int8_trimmed,
        calibrated=True,
        packages=("openvino", "nncf"),
    )
)
