"""The workflow .github/workflows/bench.yml, from the template of `qbert init`.

`python tools/own_workflow.py` writes it.
"""

from pathlib import Path

from qbert.cli import setup as init

FILE = Path(__file__).parents[1] / ".github" / "workflows" / "bench.yml"
VARIANTS = "--variants fp32,int8-dynamic,int8-onnxruntime,int8-openvino"


def text() -> str:
    return init.render(
        "workflow.yml",
        about="Made by tools/own_workflow.py from qbert/cli/templates/workflow.yml: change these.",
        name="bench",
        changed=init.paths(
            "paths-ignore",
            "nothing here is measured, and the gate refuses to compare a thing with itself",
            ["**.md", "docs/**", "tests/**", "tools/**", "findings/**", ".*", ".ci/**", ".github/workflows/**"],
        ),
        branch='"main"',
        minutes="40",
        requirement="-e '.[all]'",
        gate_options=f" {VARIANTS} --max-lengths 128",
        bench=f"pytest bench/ {VARIANTS}",
    )


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
