"""A saved run as pytest-benchmark writes it, of models and figures that are made up."""

from typing import Any

from garble import FIGURES

LENGTHS = (128, 384)
VARIANTS = {
    "fp32": (100.0, "fp32"),
    "fp32-openvino": (50.0, "fp32"),
    "int8-openvino": (14.0, "int8"),
    "bf16": (40.0, "bf16"),
}


def benchmark(measured: str, model: str, max_length: int, variant: str, **info: Any) -> dict[str, Any]:
    identity = {
        "processor": "A processor",
        "instruction_sets": ["avx2"],
        "checkpoint_sha256": "c" * 64,
        "dataset": "news",
        "dataset_sha256": "d" * 64,
        "definition": {"precision": VARIANTS.get(variant, (0, "int8"))[1]},
        "versions": {"torch": "2.13"},
        "threads": 1,
    }
    place = {"model": model, "trained": model != "untrained", "max_length": max_length, "variant": variant}
    seconds = info.pop("seconds", 1.0)
    stats = {"median": seconds, "q1": 0.98 * seconds, "q3": 1.03 * seconds}
    info = FIGURES[measured] | {"p50_s": seconds, "p95_s": 1.1 * seconds} | info
    if measured == "accuracy":
        info["f1_drop"] = info["f1_baseline"] - info["f1"]
    extra = place | {"identity": identity, "measured": measured} | info
    return {"name": f"test_{measured}[{model}-{max_length}-{variant}]", "stats": stats, "extra_info": extra}


def cell(model: str, max_length: int, variant: str, text: str = "a text", label: str = "sport") -> list[dict[str, Any]]:
    milliseconds = VARIANTS[variant][0]
    speedup = VARIANTS["fp32"][0] / milliseconds
    drop = 0.004 if variant == "int8-openvino" else 0.0
    flips = [
        {"row": 7, "label": label, "baseline": label, "baseline_margin": 0.5, "variant": "health",
         "variant_margin": 0.2, "text": text}
    ]  # fmt: skip
    found = [
        benchmark(
            *("latency", model, max_length, variant),
            seconds=milliseconds * max_length / 384 / 1e3,
            speedup=speedup,
            speedup_low=0.97 * speedup,
            speedup_high=1.02 * speedup,
            baseline_p50_s=VARIANTS["fp32"][0] * max_length / 384 / 1e3,
            floor_s=0.4 * milliseconds * max_length / 384 / 1e3,
            share_of_limit=0.4,
            best_floor_s=0.3 * milliseconds * max_length / 384 / 1e3,
            share_of_best_limit=0.3,
            limit_definition=2,
        )
    ]
    if model != "untrained":
        found.append(
            benchmark(
                *("accuracy", model, max_length, variant),
                f1=0.95 - drop,
                f1_drop_low=drop - 0.006,
                f1_drop_high=drop + 0.006,
                flips=len(flips) if drop else 0,
                flipped=flips if drop else [],
            )
        )
    if max_length == max(LENGTHS):
        found.append(benchmark("footprint", model, max_length, variant))
    return found


def capacity(model: str, max_length: int, variant: str, **info: Any) -> dict[str, Any]:
    """What two workers serve; a text takes each as long as the variant's latency."""
    seconds = VARIANTS[variant][0] / 1e3
    rates = [load * 2 / seconds for load in (0.1, 0.5, 0.9)]
    served: dict[str, Any] = {
        "seconds": seconds,
        "texts_per_s": 2 / seconds,
        "loaded_p50_s": seconds,
        "loaded_p99_s": 1.2 * seconds,
        "loaded_worst_s": 1.3 * seconds,
        "loaded_over_alone": 1.04,
        "loaded_over_alone_low": 1.0,
        "loaded_over_alone_high": 1.08,
        "pss_bytes": 6e8,
        "rates": rates,
        "rates_p99_s": [1.2 * seconds, 2.0 * seconds, 6.0 * seconds],
        "rate_within_limit": rates[1] if seconds < 0.05 / 2 else 0.0,
    }
    return benchmark("capacity", model, max_length, variant, **served | info)


def run(*benchmarks: dict[str, Any], when: str = "2026-11-01T12:00:00+00:00") -> dict[str, Any]:
    return {"datetime": when, "commit_info": {"id": "a" * 40}, "benchmarks": list(benchmarks)}


def whole(**marked: str) -> dict[str, Any]:
    return run(
        *(one for model in ("served", "untrained") for length in LENGTHS for variant in VARIANTS
          for one in cell(model, length, variant, **marked))
    )  # fmt: skip


def served(*variants: str, models: tuple[str, ...] = ("served",), **info: Any) -> list[dict[str, Any]]:
    return [capacity(model, max(LENGTHS), variant, **info) for model in models for variant in variants]
