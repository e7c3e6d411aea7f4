"""AVX2's products add two steps in 16 bits: packed weights have to be what they were, and never too much for that."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qbert.variants.native import compiler
from qbert.variants.native.targets import FLAGS, KERNELS, SOURCES, chosen

KERNEL = next(kernel for kernel in KERNELS if kernel.name == "avx2")
PROGRAM = """
#include <cstdio>
#include <vector>
#include "encoder.h"

using namespace qbert;

struct Keep {
  static constexpr bool kStores = false;
  std::vector<std::int32_t>& to;
  int width;
  template <std::size_t N>
  auto at(int column) const {
    return [=, this](int row, int r, const Several<Ints, N>& sums) {
      for (int lane = 0; lane < kLanes; ++lane) to[(row + r) * width + column + lane] = sums[0][lane];
    };
  }
};

// Reads columns, depth in bytes, weights and rows; writes how many panels go step by step, how many steps the others
// have beside their own, and the products.
int main() {
  int columns, bytes;
  if (std::fread(&columns, 4, 1, stdin) != 1 || std::fread(&bytes, 4, 1, stdin) != 1) return 1;
  std::vector<std::int8_t> weights(std::size_t(columns) * bytes);
  std::vector<std::uint8_t> rows(7 * (round_up(bytes, 8) + 8));
  const std::size_t stride = rows.size() / 7;
  if (std::fread(weights.data(), 1, weights.size(), stdin) != weights.size()) return 1;
  for (int row = 0; row < 7; ++row) {
    if (int(std::fread(rows.data() + row * stride, 1, bytes, stdin)) != bytes) return 1;
  }
  const StepPanels panels(columns, int(round_up(bytes, 4)) / 4);
  std::vector<std::uint32_t> packed(panels.size());
  pack(weights.data(), bytes, bytes, panels, packed.data());
  int step_by_step = 0, extras = 0;
  for (int panel = 0; panel < panels.count; ++panel) {
    const auto head = std::int32_t(packed[panels.offset(panel)]);
    step_by_step += head == kStepByStep, extras += std::max(head, 0);
  }
  const int width = int(round_up(columns, kLanes));
  std::vector<std::int32_t> sums(7 * width);
  Kernel::Int8::run(rows.data(), stride, 7, packed.data(), panels, Keep{sums, width}, nullptr);
  std::fwrite(&step_by_step, 4, 1, stdout), std::fwrite(&extras, 4, 1, stdout);
  for (int row = 0; row < 7; ++row) std::fwrite(sums.data() + row * width, 4, columns, stdout);
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if KERNEL not in compiler.kernels() or not shutil.which("g++"):
        pytest.skip("needs AVX2 and g++")
    folder = tmp_path_factory.mktemp("steps")
    (folder / "steps.cpp").write_text(PROGRAM)
    flags = [flag for flag in (*FLAGS, *compiler.AVX2, *KERNEL.flags, *chosen(KERNEL)) if flag != "-shared"]
    command = ["g++", *flags, "-std=c++20", "-O1", f"-I{SOURCES}", "steps.cpp", "-o", "steps"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "steps"


def multiply(program: Path, weights: np.ndarray, rows: np.ndarray) -> tuple[int, int, np.ndarray]:
    """How many panels go step by step, how many steps others have beside their own, and the products."""
    asked = np.array(weights.shape, dtype=np.int32).tobytes() + weights.tobytes() + rows.tobytes()
    answer = subprocess.run([program], input=asked, check=True, capture_output=True).stdout
    found = np.frombuffer(answer, dtype=np.int32)
    return int(found[0]), int(found[1]), found[2:].reshape(len(rows), len(weights))


@pytest.mark.parametrize(
    ("spread", "step_by_step", "extras"),
    [(10.0, "none", "none"), (40.0, "none", "some"), (80.0, "all", "none"), (1e9, "all", "none")],
)
@pytest.mark.parametrize("shape", [(768, 768), (50, 770), (8, 7), (1, 1), (25, 64)])
def test_products_are_exact_whatever_the_weights(
    program: Path, spread: float, step_by_step: str, extras: str, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    weights = np.clip(spread * rng.standard_normal(shape), -127, 127).astype(np.int8)
    rows = rng.integers(0, 128, (7, shape[1]), dtype=np.uint8)
    rows[0], rows[1] = 127, 0
    found = multiply(program, weights, rows)
    assert np.array_equal(found[2], rows.astype(np.int64) @ weights.T.astype(np.int64))
    if shape == (768, 768):
        assert {"none": found[0] == 0, "all": found[0] == 32}[step_by_step]
        assert {"none": found[1] == 0, "some": found[1] > 32}[extras]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_sums_are_exact(program: Path, sign: int) -> None:
    """A few groups of the greatest weights, so that steps are added in twos with extras, by the greatest bytes."""
    weights = np.zeros((24, 768), dtype=np.int8)
    weights[:, :24] = sign * 127
    weights[5, 100:104], weights[6, 200:204] = -sign * 127, -128
    rows = np.full((7, 768), 127, dtype=np.uint8)
    step_by_step, extras, found = multiply(program, weights, rows)
    assert (step_by_step, extras) == (0, 3)
    assert np.array_equal(found, rows.astype(np.int64) @ weights.T.astype(np.int64))
