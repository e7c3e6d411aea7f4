// What ARM's kernels share: vectors of 128 bits, arithmetic that the vector extension lacks, and dot products in fp32.
#pragma once

#include "twin.h"

namespace qbert {
constexpr int kLanes = 4;      // dwords in a register
constexpr int kBlockRows = 7;  // a block of 7 rows by 3 vectors of sums and its operands fit into 32 registers
}  // namespace qbert

#include "../vector.h"

namespace qbert {

inline Floats minimum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = std::fmin(a[i], b[i]),
            asm("fminnm %0.4s, %1.4s, %2.4s" : "=w"(result) : "w"(a), "w"(b)));
  return result;
}

inline Floats maximum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = std::fmax(a[i], b[i]),
            asm("fmaxnm %0.4s, %1.4s, %2.4s" : "=w"(result) : "w"(a), "w"(b)));
  return result;
}

inline Floats nearest_whole(Floats x) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = std::nearbyint(x[i]),
            asm("frintn %0.4s, %1.4s" : "=w"(result) : "w"(x)));
  return result;
}

// x * 2^whole for x from 1 to 2, and nearly 0 where `whole` is below -126.
inline Floats scale(Floats x, Floats whole) {
  return Floats(Ints(x) + (__builtin_convertvector(maximum(whole, broadcast(-126)), Ints) << 23));
}

// Halves to floats and back: to the nearest, ties to even.
inline Floats widen(Words halves) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::widen(halves[i]),
            asm("fcvtl %0.4s, %1.4h" : "=w"(result) : "w"(halves)));
  return result;
}

inline Words narrow(Floats values) {
  Words result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::narrow(values[i]),
            asm("fcvtn %0.4h, %1.4s" : "=w"(result) : "w"(values)));
  return result;
}

struct Fp32Dot {
  using Sum = Floats;
  using Element = float;
  static constexpr int kGroup = 1;
  static constexpr bool kByLane = true;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = std::fma(Floats(row)[i], Floats(column)[i], sum[i]),
              asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(sum) : "w"(row), "w"(column)));
  }
  template <int Lane>
  static void add_lane(Floats& sum, Ints row, Ints column) {
    QBERT_ASM(add(sum, row[Lane] - Ints{}, column),
              asm("fmla %0.4s, %1.4s, %2.s[%c3]" : "+w"(sum) : "w"(column), "w"(row), "i"(Lane)));
  }
  template <std::size_t N>
  static void write(Element* to, const Several<Floats, N>& values) {
    store_several(to, values);
  }
};

}  // namespace qbert
