// Packed matrices and the product of rows with them.
//
// A matrix is packed into panels of up to three vectors of columns. A panel holds, for each step along the depth, one
// dword of each of its columns side by side: `[panel][depth][columns]`. So the loop over the depth reads memory in order.
// A dword holds four numbers of int8, two of bf16, or one of fp32: weights, keys and values are packed in the same way.
//
// A block is 8 rows by 48 columns (4 by 24 where registers have 256 bits): 24 accumulators, three registers for columns and
// one for the row's broadcast dword leave 4 of 32 registers. Each dword of a row is used three times and each of a column
// eight times, so 11 loads feed 24 dot products, and the two units for those never wait. All rows are multiplied with one
// panel (36 KB at a depth of 768) before the next, so the panel stays in the L1 cache.
//
// The epilogue of a product takes its sums while they are in registers. `epilogue.at<N>(column)` returns a function that is
// called for some rows in order: with the first of them, the row's number from there, and N vectors of sums from `column` on.
// The first two rows of a product are always among the rows of one such function.
//
// tiles.h has another product, with the same interface. A kernel (kernels/) chooses one for int8 and one for attention.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "powers.h"
#include "vector.h"

namespace qbert {

constexpr int kBlockVectors = 3;

// The division of `columns` columns of `depth` dwords into panels whose widths differ by one vector at most.
struct Panels {
  int columns, depth;
  int vectors = int(round_up(columns, kLanes)) / kLanes;
  int count = (vectors + kBlockVectors - 1) / kBlockVectors;

  Panels(int columns, int depth) : columns(columns), depth(depth) {}
  int first(int panel) const { return panel * (vectors / count) + std::min(panel, vectors % count); }
  int width(int panel) const { return first(panel + 1) - first(panel); }
  std::size_t offset(int panel) const { return std::size_t(first(panel)) * kLanes * depth; }
  std::size_t size() const { return std::size_t(vectors) * kLanes * depth; }
  // From rows of dwords of as many columns to what `at` tells the place of.
  static void arrange(Ints (&square)[kLanes]) { transpose(square); }
  // Where, within a panel of `width` vectors, the dwords of a vector of columns are at `step`.
  static std::size_t at(int step, int vector, int width) { return (std::size_t(step) * width + vector) * kLanes; }
};

// Pack columns that are `stride` bytes apart and `bytes` long; the last dword is filled up with zeros.
template <class Layout>
void pack(const void* columns, std::size_t stride, std::size_t bytes, const Layout& panels, std::uint32_t* packed) {
  const auto* from = static_cast<const unsigned char*>(columns);
  for (int panel = 0; panel < panels.count; ++panel) {
    const int width = panels.width(panel);
    std::uint32_t* to = packed + panels.offset(panel);
    for (int vector = 0; vector < width; ++vector) {
      const int column = (panels.first(panel) + vector) * kLanes;
      for (int step = 0; step < panels.depth; step += kLanes) {
        const std::size_t start = 4 * std::size_t(step), size = std::min(sizeof(Ints), bytes - start);
        const unsigned char* corner = from + column * stride + start;
        Ints square[kLanes] = {};
        if (size == sizeof(Ints) && column + kLanes <= panels.columns) {
#pragma GCC unroll 16
          for (int lane = 0; lane < kLanes; ++lane) square[lane] = load<Ints>(corner + lane * stride);
        } else {
          for (int lane = 0; lane < std::min(kLanes, panels.columns - column); ++lane) {
            std::memcpy(&square[lane], corner + lane * stride, size);
          }
        }
        Layout::arrange(square);
        for (int i = 0; i < std::min(kLanes, panels.depth - step); ++i) {
          store(to + Layout::at(step + i, vector, width), square[i]);
        }
      }
    }
  }
}

// What a block prefetches into the L2 cache at each step: its share of the next panel, which may be the next matrix's.
// Weights are read once in a run, from memory. Prefetching a panel at once, or not at all, took 7 % longer.
struct Prefetch {
  const char* from;
  std::size_t bytes;

  template <class Dot>
  void next() {
    if (!Dot::kPrefetch) return;
    __builtin_prefetch(from, 0, 2);
    from += bytes;
  }
};

// A block of rows by vectors of columns: a row's dword is broadcast and multiplied with one of each column.
template <class Dot_>
struct VectorBlock {
  using Dot = Dot_;
  using Layout = Panels;
  static constexpr int kRows = kBlockRows, kVectors = kBlockVectors;
  static constexpr int kDepth = 4;  // rows are read up to a multiple of this many bytes
  static constexpr int kSteps = 1;  // of the depth that `add` adds
  static void add(typename Dot::Sum& sum) { Dot::add(sum, Ints{}, Ints{}); }

  template <int Rows, int Vectors, class Epilogue>
  [[gnu::noinline, gnu::flatten]] static void multiply(const unsigned char* rows, std::size_t stride,
                                                       const std::uint32_t* packed, int depth, Prefetch prefetch, int row,
                                                       int column, const Epilogue& epilogue) {
    typename Dot::Sum sums[Rows][Vectors] = {};
    int step = 0;
    if constexpr (Dot::kByLane) {
      for (; step + kLanes <= depth; step += kLanes) {
        Ints dwords[Rows];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) dwords[r] = load<Ints>(rows + r * stride + 4 * std::size_t(step));
        add_lanes<Rows, Vectors>(sums, dwords, packed + Panels::at(step, 0, Vectors), prefetch, kAllLanes);
      }
    }
    for (; step < depth; ++step) {
      Ints columns[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) columns[v] = load<Ints>(packed + Panels::at(step, v, Vectors));
      prefetch.next<Dot>();
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Ints dword = load<std::int32_t>(rows + r * stride + 4 * std::size_t(step)) - Ints{};
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) Dot::add(sums[r][v], dword, columns[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      auto write = epilogue.template at<1>(column + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) write(row, r, Several<typename Dot::Sum, 1>{sums[r][v]});
    }
  }

 private:
  // The same for as many steps as a register has lanes, where the instruction takes a row's dword from a lane.
  template <int Rows, int Vectors, class Sum, int... Lane>
  [[gnu::always_inline]] static void add_lanes(Sum (&sums)[Rows][Vectors], const Ints (&dwords)[Rows],
                                               const std::uint32_t* packed, Prefetch& prefetch,
                                               std::integer_sequence<int, Lane...>) {
    (add_lane<Lane>(sums, dwords, packed + Panels::at(Lane, 0, Vectors), prefetch), ...);
  }

  template <int Lane, int Rows, int Vectors, class Sum>
  [[gnu::always_inline]] static void add_lane(Sum (&sums)[Rows][Vectors], const Ints (&dwords)[Rows],
                                              const std::uint32_t* packed, Prefetch& prefetch) {
    prefetch.next<Dot>();
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Ints column = load<Ints>(packed + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) Dot::template add_lane<Lane>(sums[r][v], dwords[r], column);
    }
  }
};

template <class Block>
class BlockProduct {
 public:
  using Dot = typename Block::Dot;
  using Layout = typename Block::Layout;
  using Powers = qbert::Powers<Dot>;
  static constexpr int kDepth = Block::kDepth;  // rows are read up to a multiple of this many bytes
  static constexpr int kColumns = kLanes;       // and written up to a multiple of this many columns
  static constexpr int kRows = 1;               // rows up to a multiple of it are read and written
  static std::size_t scratch_size(std::size_t) { return 0; }

  // Multiply `count` rows, `stride` bytes apart, with packed columns, and pass each vector of sums to `epilogue`.
  template <class Epilogue>
  static void run(const void* rows, std::size_t stride, int count, const std::uint32_t* packed, const Layout& panels,
                  const Epilogue& epilogue, std::int32_t*) {
    static constexpr auto kBlocks = sizes<Epilogue>(std::make_integer_sequence<int, Block::kRows * Block::kVectors>{});
    const int blocks = (count + Block::kRows - 1) / Block::kRows;
    for (int panel = 0; panel < panels.count; ++panel) {
      const std::size_t width = std::size_t(panels.width(panel)) * sizeof(Ints);
      const Prefetch prefetch{reinterpret_cast<const char*>(packed + panels.offset(panel + 1)),
                              (width + blocks - 1) / blocks};
      for (int block = 0; block < blocks; ++block) {  // heights differ by one row at most
        const int first = block * (count / blocks) + std::min(block, count % blocks);
        const int height = count / blocks + (block < count % blocks);
        kBlocks[(height - 1) * Block::kVectors + panels.width(panel) - 1](
            static_cast<const unsigned char*>(rows) + first * stride, stride, packed + panels.offset(panel), panels.depth,
            Prefetch{prefetch.from + block * prefetch.bytes * panels.depth, prefetch.bytes}, first,
            panels.first(panel) * kLanes, epilogue);
      }
    }
  }

  // Add products in registers `repeats` times, and return how many operations those are: the rate that no product exceeds.
  static std::int64_t in_registers(std::int64_t repeats) {
    constexpr int kSums = Block::kRows * Block::kVectors;
    typename Dot::Sum sums[kSums] = {};
    for (std::int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
      for (int s = 0; s < kSums; ++s) Block::add(sums[s]);
    }
    typename Dot::Sum total{};
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) total += sums[s];
    return repeats * kSums * kLanes * Dot::kGroup * 2 * Block::kSteps + std::int64_t(total[0]);  // it is 0, which the compiler cannot know
  }

 private:
  template <class Epilogue, int... Index>
  static constexpr auto sizes(std::integer_sequence<int, Index...>) {
    return std::array{&Block::template multiply<Index / Block::kVectors + 1, Index % Block::kVectors + 1, Epilogue>...};
  }
};

template <class Dot>
using VectorProduct = BlockProduct<VectorBlock<Dot>>;

// The same dot product for columns that are weights, read once in a run.
template <class Dot>
struct Streamed : Dot {
  static constexpr bool kPrefetch = true;
};

}  // namespace qbert
