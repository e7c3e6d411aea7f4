// Packed matrices and the product of rows with them.
//
// A matrix is packed into panels of up to three vectors of columns. A panel holds, for each step along the depth, one
// dword of each of its columns side by side: `[panel][depth][columns]`. The loop over the depth then reads memory in the
// order in which it lies. A dword holds four bytes of int8, two numbers of bf16, or one of fp32, so weights, keys and
// values are all packed alike.
//
// A tile is 8 rows by 48 columns (4 by 24 where registers have 256 bits): 24 accumulators, three registers for columns and
// one for the row's broadcast dword leave 4 of 32 registers. Each dword of a row is used three times and each of a column
// eight times, so 11 loads feed 24 dot products, and the two units for those never wait. All rows are done with one panel
// (36 KB at a depth of 768) before the next, so it is read from the first cache; what becomes of a sum is decided by the
// `Finish` of the product, while it still is in its register: `finish.columns(column)` gives what is called with the tile's
// first row, the row within the tile, and the sums, row after row. The first two rows always are in one tile.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "vector.h"

namespace qbert {

// How `columns` columns of `depth` dwords are divided into panels of equal width, or nearly.
struct Panels {
  int columns, depth;
  int vectors = int(round_up(columns, kLanes)) / kLanes;
  int count = (vectors + kTileVectors - 1) / kTileVectors;

  Panels(int columns, int depth) : columns(columns), depth(depth) {}
  int first(int panel) const { return panel * (vectors / count) + std::min(panel, vectors % count); }
  int width(int panel) const { return first(panel + 1) - first(panel); }
  std::size_t offset(int panel) const { return std::size_t(first(panel)) * kLanes * depth; }
  std::size_t size() const { return std::size_t(vectors) * kLanes * depth; }
};

// Pack columns that lie one after the other, `stride` bytes apart and `bytes` long; the last dword is filled with zeros.
inline void pack(const void* columns, std::size_t stride, std::size_t bytes, const Panels& panels, std::uint32_t* packed) {
  const auto* from = static_cast<const unsigned char*>(columns);
  for (int panel = 0; panel < panels.count; ++panel) {
    const int width = panels.width(panel);
    std::uint32_t* to = packed + panels.offset(panel);
    for (int vector = 0; vector < width; ++vector) {
      const int column = (panels.first(panel) + vector) * kLanes;
      for (int step = 0; step < panels.depth; step += kLanes) {
        const std::size_t start = 4 * std::size_t(step), size = std::min(sizeof(Ints), bytes - start);
        Ints square[kLanes] = {};
        for (int lane = 0; lane < std::min(kLanes, panels.columns - column); ++lane) {
          std::memcpy(&square[lane], from + (column + lane) * stride + start, size);
        }
        transpose(square);
        for (int i = 0; i < std::min(kLanes, panels.depth - step); ++i) {
          store(to + (std::size_t(step + i) * width + vector) * kLanes, square[i]);
        }
      }
    }
  }
}

// What a tile brings into the second cache at each step: its share of the panel that comes next, which may be the next
// matrix's. Weights are read once in a run, and come from memory; all at once, or not at all, took 7 % longer.
struct Ahead {
  const char* from;
  std::size_t bytes;
};

template <class Dot, int Rows, int Vectors, class Finish>
[[gnu::noinline]] void tile(const unsigned char* rows, std::size_t stride, const std::uint32_t* packed, int depth,
                            Ahead ahead, int row, int column, const Finish& finish) {
  typename Dot::Sum sums[Rows][Vectors] = {};
  for (int step = 0; step < depth; ++step) {
    Ints columns[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = load<Ints>(packed + (std::size_t(step) * Vectors + v) * kLanes);
    if (Dot::kCold) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from += ahead.bytes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Ints dword = load<std::int32_t>(rows + r * stride + 4 * std::size_t(step)) - Ints{};
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) Dot::add(sums[r][v], dword, columns[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    auto put = finish.columns(column + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) put(row, r, sums[r][v]);
  }
}

template <class Dot, class Finish, int... Index>
constexpr auto tiles(std::integer_sequence<int, Index...>) {
  return std::array{&tile<Dot, Index / kTileVectors + 1, Index % kTileVectors + 1, Finish>...};
}

// Multiply `count` rows, `stride` bytes apart, with packed columns, and pass each vector of sums to `finish`.
template <class Dot, class Finish>
void product(const void* rows, std::size_t stride, int count, const std::uint32_t* packed, const Panels& panels,
             const Finish& finish) {
  static constexpr auto kTiles = tiles<Dot, Finish>(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
  const int blocks = (count + kTileRows - 1) / kTileRows;
  for (int panel = 0; panel < panels.count; ++panel) {
    const std::size_t width = std::size_t(panels.width(panel)) * sizeof(Ints);
    const Ahead ahead{reinterpret_cast<const char*>(packed + panels.offset(panel + 1)), (width + blocks - 1) / blocks};
    for (int block = 0; block < blocks; ++block) {  // of equal height, or nearly
      const int first = block * (count / blocks) + std::min(block, count % blocks);
      const int height = count / blocks + (block < count % blocks);
      kTiles[(height - 1) * kTileVectors + panels.width(panel) - 1](
          static_cast<const unsigned char*>(rows) + first * stride, stride, packed + panels.offset(panel), panels.depth,
          Ahead{ahead.from + block * ahead.bytes * panels.depth, ahead.bytes}, first, panels.first(panel) * kLanes, finish);
    }
  }
}

}  // namespace qbert
