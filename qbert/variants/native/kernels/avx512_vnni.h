// AVX512-VNNI: vectors of 512 bits and int8 dot products; attention in bf16 where AVX512-BF16 is compiled for, else in fp32.
//
// The dot products are assembly: with intrinsics GCC 12 moves every accumulator through memory, which takes twice as long.
// Each instruction has a twin in plain C++ beside it (twin.h).
#pragma once

#include "twin.h"

namespace qbert {
constexpr int kLanes = 16;     // dwords in a register
constexpr int kBlockRows = 8;  // a block of 8 rows by 3 vectors of sums and its operands fit into 32 registers
constexpr int kLeastByte = 0, kGreatestByte = 255;  // of a quantized row (rows.h)
}  // namespace qbert

#include "../vector.h"

namespace qbert {

inline Floats minimum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(result = a < b ? a : b, asm("vminps %2, %1, %0" : "=v"(result) : "v"(a), "v"(b)));
  return result;
}

inline Floats maximum(Floats a, Floats b) {
  Floats result;
  QBERT_ASM(result = a > b ? a : b, asm("vmaxps %2, %1, %0" : "=v"(result) : "v"(a), "v"(b)));
  return result;
}

inline Floats nearest_whole(Floats x) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = std::nearbyint(x[i]),
            asm("vrndscaleps $0, %1, %0" : "=v"(result) : "v"(x)));
  return result;
}

// x * 2^whole, and 0 where `whole` is minus infinity.
inline Floats scale(Floats x, Floats whole) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::scale(x[i], whole[i]),
            asm("vscalefps %2, %1, %0" : "=v"(result) : "v"(x), "v"(whole)));
  return result;
}

// Halves to floats and back: to the nearest, ties to even.
inline Floats widen(Words halves) {
  Floats result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::widen(halves[i]),
            asm("vcvtph2ps %1, %0" : "=v"(result) : "v"(halves)));
  return result;
}

inline Words narrow(Floats values) {
  Words result;
  QBERT_ASM(for (int i = 0; i < kLanes; ++i) result[i] = twin::narrow(values[i]),
            asm("vcvtps2ph $0, %1, %0" : "=v"(result) : "v"(values)));
  return result;
}

struct Int8Dot {  // four unsigned by four signed bytes, exact: each step adds at most 4 * 255 * 127 to a 32-bit sum
  using Sum = Ints;
  static constexpr int kGroup = 4;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sum, Ints row, Ints column) {
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_int8(sum[i], row[i], column[i]),
              asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column)));
  }
};

struct Fp32Dot {
  using Sum = Floats;
  using Element = float;
  static constexpr int kGroup = 1;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = std::fma(Floats(row)[i], Floats(column)[i], sum[i]),
              asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column)));
  }
  template <std::size_t N>
  static void write(Element* to, const Several<Floats, N>& values) {
    store_several(to, values);
  }
};

struct Bf16Dot {
  using Sum = Floats;
  using Element = std::uint16_t;
  static constexpr int kGroup = 2;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_bf16(sum[i], row[i], column[i]),
              asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column)));
  }
  template <std::size_t N>
  static void write(Element* to, const Several<Floats, N>& values) {
    store_several(to, each(rounded, values));
  }

 private:
  static Words rounded(Floats values) {  // to the nearest, ties to even
    Words words;
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) words[i] = twin::bf16(values[i]),
              asm("vcvtneps2bf16 %1, %0" : "=v"(words) : "v"(values)));
    return words;
  }
};

}  // namespace qbert

#include "../product.h"

namespace qbert {

struct Avx512Vnni {
  static constexpr char kInstructions[] = "avx512_vnni";
  using Int8 = VectorProduct<Int8Dot>;
  using Attention = VectorProduct<Fp32Dot>;
  using Kept = VectorProduct<Streamed<Fp32Dot>>;
  static bool permitted() { return true; }
  struct Session {};
};

struct Avx512VnniBf16 : Avx512Vnni {
  static constexpr char kInstructions[] = "avx512_vnni avx512_bf16";
  using Attention = VectorProduct<Bf16Dot>;
  using Kept = VectorProduct<Streamed<Bf16Dot>>;
};

}  // namespace qbert
