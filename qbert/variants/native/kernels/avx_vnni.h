// AVX-VNNI: vectors of 256 bits and int8 dot products; attention in fp32.
#pragma once

namespace qbert {
constexpr int kBlockRows = 4;  // a block of 4 rows by 3 vectors of sums and its operands fit into 16 registers
constexpr int kLeastByte = 0, kGreatestByte = 255;  // of a quantized row (rows.h)
}  // namespace qbert

#include "avx.h"

namespace qbert {

struct Int8Dot {  // four unsigned by four signed bytes, exact: each step adds at most 4 * 255 * 127 to a 32-bit sum
  using Sum = Ints;
  static constexpr int kGroup = 4;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sum, Ints row, Ints column) {
    // {vex}: the encoding of AVX-VNNI, which the assembler does not choose by itself
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_int8(sum[i], row[i], column[i]),
              asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(column)));
  }
};

}  // namespace qbert

#include "../product.h"

namespace qbert {

struct AvxVnni {
  static constexpr char kInstructions[] = "avx_vnni";
  using Int8 = VectorProduct<Int8Dot>;
  using Attention = VectorProduct<Fp32Dot>;
  using Kept = VectorProduct<Streamed<Fp32Dot>>;
  static bool permitted() { return true; }
  struct Session {};
};

}  // namespace qbert
