// Arithmetic on vectors of the width that a kernel (kernels/) chooses: kLanes floats or dwords.
//
// It is GCC's vector extension, which clang has too, so one source serves every width. What the extension lacks is assembly
// in the kernel's file.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace qbert {

using Floats [[gnu::vector_size(kLanes * 4)]] = float;
using Ints [[gnu::vector_size(kLanes * 4)]] = std::int32_t;
using UInts [[gnu::vector_size(kLanes * 4)]] = std::uint32_t;
using Words [[gnu::vector_size(kLanes * 2)]] = std::uint16_t;
using Byte = std::conditional_t<(kLeastByte < 0), std::int8_t, std::uint8_t>;  // of a quantized row (rows.h)
using Bytes [[gnu::vector_size(kLanes)]] = Byte;

constexpr auto kAllLanes = std::make_integer_sequence<int, kLanes>{};

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

template <class Vector, int... Lane>
inline auto joined(Vector a, Vector b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, b, Lane...);
}

// Some vectors that lie side by side. All loops over them are written out, else GCC 12 keeps them in memory.
template <class Vector, std::size_t N>
using Several = std::array<Vector, N>;

template <class Work, std::size_t... I>
inline auto each_of(std::index_sequence<I...>, const Work& work) {
  return Several<decltype(work(0)), sizeof...(I)>{work(I)...};
}

// Apply `work` to each vector, and to those of `others` that belong to it.
template <class Work, class First, std::size_t N, class... Others>
inline auto each(const Work& work, const Several<First, N>& first, const Others&... others) {
  return each_of(std::make_index_sequence<N>{}, [&](std::size_t i) { return work(first[i], others[i]...); });
}

template <class Vector, std::size_t N, class Number>
inline Several<Vector, N> load_several(const Number* from) {
  return each_of(std::make_index_sequence<N>{}, [=](std::size_t i) { return load<Vector>(from + i * kLanes); });
}

template <class Number, class Vector>
inline void store_several(Number* to, const Several<Vector, 1>& vectors) {
  store(to, vectors[0]);
}

template <class Number, class Vector>
inline void store_several(Number* to, const Several<Vector, 2>& vectors) {
  if constexpr (sizeof(Vector) < sizeof(Floats)) {
    store(to, joined(vectors[0], vectors[1], std::make_integer_sequence<int, 2 * kLanes>{}));
  } else {
    store(to, vectors[0]), store(to + kLanes, vectors[1]);
  }
}

inline Floats broadcast(float value) { return value - Floats{}; }

template <int... Lane>
inline Ints lane_numbers(std::integer_sequence<int, Lane...>) {
  return Ints{Lane...};
}

// Keep the first `count` lanes of `values`, and set the others to zero.
inline Floats first_lanes(Floats values, int count) {
  return Floats(Ints(values) & (lane_numbers(kAllLanes) < count));
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
    return reduce<Step / 2>(combine(values, rotated<Step>(values, kAllLanes)), combine);
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
  exchange<1>(rows, kAllLanes);
  exchange<2>(rows, kAllLanes);
  if constexpr (kLanes >= 8) exchange<4>(rows, kAllLanes);
  if constexpr (kLanes >= 16) exchange<8>(rows, kAllLanes);
}

// A number of 16 bits, as IEEE 754 has it.
struct Half {
  std::uint16_t bits;
};

// What rows between two products are kept as (rows.h), and the greatest number there; twice as much is a float, too.
#if defined(QBERT_WIDE)
using Between = float;
constexpr float kGreatest = 1e30f;
#else
using Between = Half;
constexpr float kGreatest = 65504;
#endif

}  // namespace qbert
