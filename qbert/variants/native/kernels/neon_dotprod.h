// ARM's dot products (FEAT_DotProd): vectors of 128 bits and int8 dot products; attention in fp32.
#pragma once

namespace qbert {
constexpr int kLeastByte = -128, kGreatestByte = 127;  // of a quantized row (rows.h)
}

#include "neon.h"

namespace qbert {

struct Int8Dot {  // four signed by four signed bytes, exact: each step adds at most 4 * 128 * 128 to a 32-bit sum
  using Sum = Ints;
  static constexpr int kGroup = 4;
  static constexpr bool kByLane = true;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sum, Ints row, Ints column) {
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_signed(sum[i], row[i], column[i]),
              asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(row), "w"(column)));
  }
  template <int Lane>
  static void add_lane(Ints& sum, Ints row, Ints column) {
    QBERT_ASM(add(sum, row[Lane] - Ints{}, column),
              asm("sdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(sum) : "w"(column), "w"(row), "i"(Lane)));
  }
};

}  // namespace qbert

#include "../product.h"

namespace qbert {

struct NeonDotprod {
  static constexpr char kInstructions[] = "asimddp";
  using Int8 = VectorProduct<Int8Dot>;
  using Attention = VectorProduct<Fp32Dot>;
  using Kept = VectorProduct<Streamed<Fp32Dot>>;
  static bool permitted() { return true; }
  struct Session {};
};

}  // namespace qbert
