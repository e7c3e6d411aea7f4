// What kernels with vectors of 256 bits share: arithmetic that the vector extension lacks, and dot products in fp32.
#pragma once

#include "twin.h"

#if defined(__clang__)
#if __has_builtin(__builtin_elementwise_fma)  // since Clang 17
#define QBERT_ELEMENTWISE_FMA
#endif
#endif

namespace qbert {
constexpr int kLanes = 8;  // dwords in a register
}

#include "../vector.h"

namespace qbert {

inline Floats minimum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(result = a < b ? a : b, asm("vminps %2, %1, %0" : "=x"(result) : "x"(a), "x"(b)));
  return result;
}

inline Floats maximum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(result = a > b ? a : b, asm("vmaxps %2, %1, %0" : "=x"(result) : "x"(a), "x"(b)));
  return result;
}

inline Floats nearest_whole(Floats x) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = std::nearbyint(x[i]),
            asm("vroundps $0, %1, %0" : "=x"(result) : "x"(x)));
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
            asm("vcvtph2ps %1, %0" : "=x"(result) : "x"(halves)));
  return result;
}

inline Words narrow(Floats values) {
  Words result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::narrow(values[i]),
            asm("vcvtps2ph $0, %1, %0" : "=x"(result) : "x"(values)));
  return result;
}

struct Fp32Dot {
  using Sum = Floats;
  using Element = float;
  static constexpr int kGroup = 1;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
#if defined(QBERT_ELEMENTWISE_FMA)  // for the reason in avx2.h
    sum = __builtin_elementwise_fma(Floats(row), Floats(column), sum);
#else
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = std::fma(Floats(row)[i], Floats(column)[i], sum[i]),
              asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(row), "x"(column)));
#endif
  }
  template <std::size_t N>
  static void write(Element* to, const Several<Floats, N>& values) {
    store_several(to, values);
  }
};

}  // namespace qbert
