// The int8 product of processors that multiply bytes by way of 16 bits: the same interface as product.h.
//
// There, to widen sums of 16 bits to 32 takes as long as to multiply. So two steps of the depth are added in 16 bits before:
// three instructions on the multipliers where there were four. A sum of four products of bytes below 128 with weights whose
// positive ones, and whose negative ones, add up to at most kMost is exact in 16 bits.
//
// Few groups of four weights exceed that, about one in a thousand. What is too much is taken off the first step's weights,
// and added by steps of their own after the others (`extras`). A panel that needs more of these than there is room for is
// multiplied step by step. A panel:
//
//     [how many extras, or kStepByStep] [of each extra, its step] [depth][columns] [extra][columns]
#pragma once

#include "product.h"

namespace qbert {

// A block of 3 rows by 3 vectors of sums leaves registers for two steps of a row, two products and the ones that widen them;
// columns are read from the L1 cache by the instruction. With 4 by 2 and columns in registers it took a tenth longer.
constexpr int kStepRows = 3, kStepVectors = 3;
constexpr int kMost = 32767 / kGreatestByte;
constexpr std::int32_t kStepByStep = -1;

struct StepPanels {
  int columns, depth;
  int vectors = int(round_up(columns, kLanes)) / kLanes;
  int count = (vectors + kStepVectors - 1) / kStepVectors;
  int extras = 8 + depth / 16;  // that there is room for, in a panel
  int head = int(round_up(1 + extras, 16));

  StepPanels(int columns, int depth) : columns(columns), depth(int(round_up(depth, 2))) {}
  int first(int panel) const { return panel * (vectors / count) + std::min(panel, vectors % count); }
  int width(int panel) const { return first(panel + 1) - first(panel); }
  std::size_t offset(int panel) const {
    return std::size_t(panel) * head + std::size_t(first(panel)) * kLanes * (depth + extras);
  }
  std::size_t size() const { return offset(count); }
};

// What of two steps' weights of a column, four bytes each, exceeds kMost, taken off `first`.
inline std::array<std::int8_t, 4> excess(std::array<std::int8_t, 4>& first, const std::array<std::int8_t, 4>& second) {
  std::array<std::int8_t, 4> taken{};
  for (int sign : {1, -1}) {
    for (int i : {0, 2}) {  // two products are added by the instruction
      int sum = 0;
      for (int k : {i, i + 1}) sum += std::max(sign * first[k], 0) + std::max(sign * second[k], 0);
      for (int k : {i, i + 1}) {
        const int part = std::max(0, std::min(sum - kMost, sign * first[k]));
        first[k] = std::int8_t(first[k] - sign * part), taken[k] = std::int8_t(taken[k] + sign * part), sum -= part;
      }
    }
  }
  return taken;
}

// Pack columns of int8 that are `stride` bytes apart and `bytes` long.
inline void pack(const void* columns, std::size_t stride, std::size_t bytes, const StepPanels& panels, std::uint32_t* packed) {
  using Four = std::array<std::int8_t, 4>;
  const auto* from = static_cast<const unsigned char*>(columns);
  const auto four = [&](int column, int step) {
    Four weights{};
    const std::size_t start = 4 * std::size_t(step);
    if (column < panels.columns && start < bytes) {
      std::memcpy(&weights, from + column * stride + start, std::min<std::size_t>(4, bytes - start));
    }
    return weights;
  };
  for (int panel = 0; panel < panels.count; ++panel) {
    const int wide = panels.width(panel) * kLanes, start = panels.first(panel) * kLanes;
    std::uint32_t *head = packed + panels.offset(panel), *steps = head + panels.head;
    std::uint32_t* extras = steps + std::size_t(panels.depth) * wide;
    int count = 0;
    for (int step = 0; step < panels.depth && count <= panels.extras; step += 2) {
      bool exceeds = false;
      for (int column = 0; column < wide; ++column) {
        Four first = four(start + column, step), second = four(start + column, step + 1);
        const Four taken = excess(first, second);
        store(steps + std::size_t(step) * wide + column, first);
        store(steps + std::size_t(step + 1) * wide + column, second);
        if (count < panels.extras) store(extras + std::size_t(count) * wide + column, taken);
        exceeds = exceeds || taken != Four{};
      }
      if (exceeds && count < panels.extras) head[1 + count] = std::uint32_t(step);
      count += exceeds;
    }
    head[0] = std::uint32_t(count <= panels.extras ? count : kStepByStep);
    if (count <= panels.extras) continue;
    for (int step = 0; step < panels.depth; ++step) {
      for (int column = 0; column < wide; ++column) {
        store(steps + std::size_t(step) * wide + column, four(start + column, step));
      }
    }
  }
}

template <class Dot_>
struct StepBlock {
  using Dot = Dot_;
  using Layout = StepPanels;
  static constexpr int kRows = kStepRows, kVectors = kStepVectors;
  static constexpr int kDepth = 8;  // rows are read up to a multiple of this many bytes
  static constexpr int kSteps = 2;
  static void add(Ints& sum) {
    static constexpr std::uint32_t kZeros[kLanes] = {};
    Dot::add_two(sum, Ints{}, Ints{}, kZeros, kZeros);
  }

  template <int Rows, int Vectors, class Epilogue>
  [[gnu::noinline, gnu::flatten]] static void multiply(const unsigned char* rows, std::size_t stride,
                                                       const std::uint32_t* panel, int depth, Prefetch prefetch, int row,
                                                       int column, const Epilogue& epilogue) {
    Ints sums[Rows][Vectors] = {};
    const int room = 8 + depth / 16, extras = load<std::int32_t>(panel);
    const std::uint32_t* steps = panel + round_up(1 + room, 16);
    if (extras == kStepByStep) {
      for (int step = 0; step < depth; ++step, steps += Vectors * kLanes) add_step(sums, rows, stride, step, steps);
    } else {
      for (int step = 0; step < depth; step += 2, steps += 2 * Vectors * kLanes) {
        prefetch.next<Dot>(), prefetch.next<Dot>();
#pragma GCC unroll 3
        for (int r = 0; r < Rows; ++r) {
          const unsigned char* from = rows + r * stride + 4 * std::size_t(step);
          const Ints one = load<std::int32_t>(from) - Ints{}, other = load<std::int32_t>(from + 4) - Ints{};
#pragma GCC unroll 3
          for (int v = 0; v < Vectors; ++v) {
            Dot::add_two(sums[r][v], one, other, steps + v * kLanes, steps + (Vectors + v) * kLanes);
          }
        }
      }
      for (int extra = 0; extra < extras; ++extra, steps += Vectors * kLanes) {
        add_step(sums, rows, stride, load<std::int32_t>(panel + 1 + extra), steps);
      }
    }
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      auto write = epilogue.template at<1>(column + v * kLanes);
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) write(row, r, Several<Ints, 1>{sums[r][v]});
    }
  }

 private:
  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void add_step(Ints (&sums)[Rows][Vectors], const unsigned char* rows, std::size_t stride,
                                              int step, const std::uint32_t* columns) {
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) {
      const Ints dword = load<std::int32_t>(rows + r * stride + 4 * std::size_t(step)) - Ints{};
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) Dot::add(sums[r][v], dword, load<Ints>(columns + v * kLanes));
    }
  }
};

template <class Dot>
using StepProduct = BlockProduct<StepBlock<Dot>>;

}  // namespace qbert
