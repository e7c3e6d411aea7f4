// Vectors of the width that this is compiled for, and the three dot products that everything else is built from.
//
// The arithmetic uses GCC's vector extension, which clang has too, so one source serves 512 and 256 bits. The dot
// products are assembly: with intrinsics GCC 12 moves every accumulator through memory, which takes twice as long.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace qbert {

#if defined(__AVX512VNNI__)
constexpr int kLanes = 16;  // dwords in a register
constexpr int kTileRows = 8;  // a tile of kTileRows by kTileVectors sums and its operands fit into 32 registers
#define QBERT_REGISTER "v"
#define QBERT_VNNI ""
#elif defined(__AVXVNNI__)
constexpr int kLanes = 8;
constexpr int kTileRows = 4;  // they fit into 16 registers
#define QBERT_REGISTER "x"
#define QBERT_VNNI "%{vex%} "  // the encoding of AVX-VNNI, which the assembler does not choose by itself
#else
#error "compile for AVX512-VNNI or AVX-VNNI"
#endif
constexpr int kTileVectors = 3;

using Floats [[gnu::vector_size(kLanes * 4)]] = float;
using Ints [[gnu::vector_size(kLanes * 4)]] = std::int32_t;
using UInts [[gnu::vector_size(kLanes * 4)]] = std::uint32_t;
using Halves [[gnu::vector_size(kLanes * 2)]] = std::uint16_t;
using Bytes [[gnu::vector_size(kLanes)]] = std::uint8_t;

constexpr std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

template <class Value>
inline Value load(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Value>
inline void store(void* to, Value value) {
  std::memcpy(to, &value, sizeof value);
}

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats minimum(Floats a, Floats b) {
  Floats result;
  asm("vminps %2, %1, %0" : "=" QBERT_REGISTER(result) : QBERT_REGISTER(a), QBERT_REGISTER(b));
  return result;
}

inline Floats maximum(Floats a, Floats b) {
  Floats result;
  asm("vmaxps %2, %1, %0" : "=" QBERT_REGISTER(result) : QBERT_REGISTER(a), QBERT_REGISTER(b));
  return result;
}

template <int... Lane>
inline Ints lane_numbers(std::integer_sequence<int, Lane...>) {
  return Ints{Lane...};
}

// Keep the first `count` lanes of `values`, and set the others to zero.
inline Floats first_lanes(Floats values, int count) {
  return Floats(Ints(values) & (lane_numbers(std::make_integer_sequence<int, kLanes>{}) < count));
}

template <int Step, class Vector, int... Lane>
inline Vector rotated(Vector values, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(values, values, (Lane + Step) % kLanes...);
}

// Reduce all lanes to one number: their sum, minimum or maximum.
template <int Step = kLanes / 2, class Combine>
inline float reduce(Floats values, Combine combine) {
  if constexpr (Step == 0) {
    return values[0];
  } else {
    return reduce<Step / 2>(combine(values, rotated<Step>(values, std::make_integer_sequence<int, kLanes>{})), combine);
  }
}

inline Floats sum(Floats a, Floats b) { return a + b; }

// Exchange the off-diagonal blocks of `Step` by `Step`; after the steps 1, 2, 4, ... the square of dwords is transposed.
template <int Step, int... Lane>
inline void exchange(Ints (&rows)[kLanes], std::integer_sequence<int, Lane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Step) continue;
    const Ints upper = rows[i], lower = rows[i + Step];
    rows[i] = __builtin_shufflevector(upper, lower, (Lane & Step ? Lane - Step + kLanes : Lane)...);
    rows[i + Step] = __builtin_shufflevector(upper, lower, (Lane & Step ? Lane + kLanes : Lane + Step)...);
  }
}

inline void transpose(Ints (&rows)[kLanes]) {
  constexpr auto kAllLanes = std::make_integer_sequence<int, kLanes>{};
  exchange<1>(rows, kAllLanes);
  exchange<2>(rows, kAllLanes);
  exchange<4>(rows, kAllLanes);
  if constexpr (kLanes == 16) exchange<8>(rows, kAllLanes);
}

// A dot product multiplies, in each lane, the `kGroup` elements of one dword of both sides and adds them to `sum`. The
// row's dword is the same in all lanes; the dwords of packed columns lie side by side (product.h).

struct Int8Dot {  // four unsigned by four signed bytes, exact: each step adds at most 4 * 255 * 127 to a 32-bit sum
  using Sum = Ints;
  static constexpr int kGroup = 4;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sum, Ints row, Ints column) {
    asm(QBERT_VNNI "vpdpbusd %2, %1, %0" : "+" QBERT_REGISTER(sum) : QBERT_REGISTER(row), QBERT_REGISTER(column));
  }
};

#if defined(__AVX512BF16__)
struct Bf16Dot {
  using Sum = Floats;
  using Element = std::uint16_t;
  static constexpr int kGroup = 2;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
  }
  static void write(Element* to, Floats values) {  // rounds to the nearest, ties to even
    Halves halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
    store(to, halves);
  }
};
#endif

struct Fp32Dot {
  using Sum = Floats;
  using Element = float;
  static constexpr int kGroup = 1;
  static constexpr bool kPrefetch = false;
  static void add(Floats& sum, Ints row, Ints column) {
    asm("vfmadd231ps %2, %1, %0" : "+" QBERT_REGISTER(sum) : QBERT_REGISTER(row), QBERT_REGISTER(column));
  }
  static void write(Element* to, Floats values) { store(to, values); }
};

#if defined(__AVX512BF16__)
using AttentionDot = Bf16Dot;
#else
using AttentionDot = Fp32Dot;
#endif

}  // namespace qbert
