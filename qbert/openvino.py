"""OpenVINO: fp32, bf16, and int8 by NNCF's post-training quantization, calibrated on training documents."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert import InputError, machine
from qbert.checkpoint import Checkpoint, Encoding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.variants import Classifier

GRAPH = "model.xml"
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


def missing() -> str:
    """Say what brings OpenVINO; empty where it is installed."""
    return "" if importlib.util.find_spec("openvino") else "pip install 'qbert[openvino]'"


def no_nncf() -> str:
    """Say what brings OpenVINO and NNCF; empty where they are installed."""
    return missing() or ("" if importlib.util.find_spec("nncf") else "pip install 'qbert[openvino]'")


def no_bf16() -> str:
    """Say why OpenVINO would not compute in bf16 here; empty where it would."""
    if machine.has("avx512_bf16", "amx_bf16", "bf16"):
        return missing()
    return "this processor has no bf16 instructions (AVX512-BF16, AMX or ARM's bf16)"


def no_bf16_nncf() -> str:
    """Say why int8 beside bf16 cannot run here; empty where it can."""
    return no_bf16() or no_nncf()


def export(checkpoint: Checkpoint, folder: Path, *, hint: str) -> None:  # noqa: ARG001  `hint` is for load
    """Write the graph of `checkpoint` in fp32."""
    _import().save_model(_convert(checkpoint), folder / GRAPH, compress_to_fp16=False)


def export_int8(checkpoint: Checkpoint, folder: Path, *, hint: str, calibration: Sequence[Encoding]) -> None:  # noqa: ARG001
    """Write the graph of `checkpoint` with weights and activations quantized by the ranges seen on `calibration`.

    NNCF has to be told that it is a transformer: else it quantizes what attention cannot bear, for 3 % of
    speed (MiniLM on SST-2: 134 of 872 labels flipped instead of 3).
    """
    openvino = _import()
    import nncf

    nncf.set_log_level(logging.ERROR)
    with _silent():
        model = nncf.quantize(
            _convert(checkpoint),
            nncf.Dataset(list(calibration)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


def load(folder: Path, *, hint: str) -> "Classifier":
    """Return the graph in `folder` compiled for one thread, with matrix products in `hint`: `f32` or `bf16`."""
    from qbert.variants import Classifier

    openvino = _import()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": hint,  # left alone it would take bf16 wherever the processor has it
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = openvino.Core().compile_model(folder / GRAPH, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{folder / GRAPH} cannot be run ({reason}): make it again with qbert quantize") from error
    request = compiled.create_infer_request()

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        return request.infer(encoding, share_inputs=True)[0]  # type: ignore[no-any-return]

    products = [
        node.get_rt_info()
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in {"FullyConnected", "MatMul"}
    ]
    return Classifier(
        run,
        {
            "matrix_products": len(products),
            "precision": PRECISIONS[compiled.get_property("INFERENCE_PRECISION_HINT").to_string()],
            "quantized_ops": sum(info["runtimePrecision"].astype(str) in {"i8", "u8"} for info in products),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        },
    )


def _import() -> Any:  # noqa: ANN401  the module openvino
    """Import OpenVINO without its telemetry, here and in NNCF: both do without where the package is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _convert(checkpoint: Checkpoint) -> Any:  # noqa: ANN401  an openvino.Model
    """Return the graph of `checkpoint`, its length left open."""
    openvino = _import()
    import torch

    names = checkpoint.encoder.inputs
    example = {name: torch.ones(1, 16, dtype=torch.int64) for name in names}
    if "token_type_ids" in example:
        example["token_type_ids"] = torch.zeros_like(example["token_type_ids"])
    try:
        with _silent():
            return openvino.convert_model(
                checkpoint.load(),
                example_input=example,
                input=[(name, openvino.PartialShape([1, -1]), openvino.Type.i64) for name in names],
            )
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{checkpoint.folder} cannot be converted for OpenVINO ({reason}): choose other variants"
        ) from error


@contextlib.contextmanager
def _silent() -> Any:  # noqa: ANN401  a context manager
    """Keep tracer warnings and progress bars of the libraries from the terminal."""
    import io
    import warnings

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
