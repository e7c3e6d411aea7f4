// ARM's int8 matrix products (FEAT_I8MM): two rows by two columns, eight bytes of each, at once; attention in fp32.
//
// A register holds eight bytes of a row and eight of the next; another one, of two columns. The panels are those of
// product.h, but what lies side by side at two steps is
//
//     step 0   [ column 0, dwords 0 and 1 | column 2, dwords 0 and 1 ]
//     step 1   [ column 1, dwords 0 and 1 | column 3, dwords 0 and 1 ]
//
// so that the sums of both, [row 0, column 0 | row 0, column 2 | row 1, column 0 | row 1, column 2] and the same of columns
// 1 and 3, become two rows of four columns by one instruction each.
#pragma once

namespace qbert {
constexpr int kLeastByte = 0, kGreatestByte = 255;  // of a quantized row (rows.h)
}

#include "neon.h"

namespace qbert {

// Volatile, so that all stay in order: else GCC 12 loads all rows before the first product, and has no register for a sum.
struct Int8Pairs {  // exact: each step adds at most 8 * 255 * 128 to a 32-bit sum
  using Sum = Ints;
  static constexpr int kGroup = 8;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sums, Ints rows, Ints columns) {
    QBERT_ASM(
        for (int i = 0; i < kLanes; ++i) {
          for (int k = 0; k < 2; ++k) sums[i] = twin::dot_int8(sums[i], rows[i / 2 * 2 + k], columns[i % 2 * 2 + k]);
        },
        asm volatile("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(rows), "w"(columns)));
  }
};

}  // namespace qbert

#include "../product.h"

namespace qbert {

struct PairPanels : Panels {
  PairPanels(int columns, int depth) : Panels(columns, int(round_up(depth, 2))) {}
  static void arrange(Ints (&square)[kLanes]) { exchange<2>(square, kAllLanes); }
};

// A block of up to 8 rows by 3 vectors of columns: 24 registers of sums, 6 of columns, and one or two of rows.
struct PairBlock {
  using Dot = Int8Pairs;
  using Layout = PairPanels;
  static constexpr int kRows = 8, kVectors = kBlockVectors, kDepth = 8, kSteps = 1;
  static void add(Ints& sum) { Dot::add(sum, Ints{}, Ints{}); }

  template <int Rows, int Vectors, class Epilogue>
  [[gnu::noinline, gnu::flatten]] static void multiply(const unsigned char* rows, std::size_t stride, const std::uint32_t* packed, int depth,
                                         Prefetch prefetch, int row, int column, const Epilogue& epilogue) {
    using Quads [[gnu::vector_size(16)]] = std::int64_t;
    constexpr int kPairs = (Rows + 1) / 2;
    Ints sums[kPairs][Vectors][2] = {};
    for (int step = 0; step < depth; step += 2) {
      Ints columns[Vectors][2];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        columns[v][0] = load<Ints>(packed + Layout::at(step, v, Vectors));
        columns[v][1] = load<Ints>(packed + Layout::at(step + 1, v, Vectors));
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {  // the last row may be alone: then it is its own partner
        const unsigned char* from = rows + 2 * p * stride + 4 * std::size_t(step);
        const Ints pair = Ints(Quads{load<std::int64_t>(from), load<std::int64_t>(from + (2 * p + 1 < Rows ? stride : 0))});
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          Dot::add(sums[p][v][0], pair, columns[v][0]);
          Dot::add(sums[p][v][1], pair, columns[v][1]);
        }
      }
      prefetch.next<Dot>(), prefetch.next<Dot>();
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      auto write = epilogue.template at<1>(column + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Ints(&both)[2] = sums[r / 2][v];
        write(row, r, Several<Ints, 1>{r % 2 ? __builtin_shufflevector(both[0], both[1], 2, 6, 3, 7)
                                            : __builtin_shufflevector(both[0], both[1], 0, 4, 1, 5)});
      }
    }
  }
};

struct NeonI8mm {
  static constexpr char kInstructions[] = "asimddp i8mm";
  using Int8 = BlockProduct<PairBlock>;
  using Attention = VectorProduct<Fp32Dot>;
  using Kept = VectorProduct<Streamed<Fp32Dot>>;
  static bool permitted() { return true; }
  struct Session {};
};

}  // namespace qbert
