// Plain C++ that computes what the instructions of the kernels do, to the bit.
//
// With -DQBERT_TWIN a kernel is compiled from it, for a processor that lacks the instructions: so each kernel's layout, tails
// and epilogues are tested everywhere. It is slow and serves nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(QBERT_TWIN)
#define QBERT_ASM(twin, ...) twin
#else
#define QBERT_ASM(twin, ...) __VA_ARGS__
#endif

namespace qbert::twin {

inline std::uint32_t bits(float value) {
  std::uint32_t result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

inline float number(std::uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Denormal numbers are zero to the instructions for bf16, as operands and as results.
inline float flushed(float value) {
  return std::fabs(value) < number(0x00800000) ? std::copysign(0.0f, value) : value;
}

inline float from_bf16(std::uint32_t bits) { return flushed(number(bits << 16)); }

inline std::uint16_t bf16(float value) {
  const std::uint32_t whole = bits(flushed(value));
  if (value != value) return std::uint16_t(whole >> 16 | 0x40);
  return std::uint16_t((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
}

inline float fma_flushed(float a, float b, float sum) { return flushed(std::fma(a, b, flushed(sum))); }

// vdpbf16ps: the odd pair before the even one.
inline float dot_bf16(float sum, std::int32_t row, std::int32_t column) {
  const std::uint32_t a = std::uint32_t(row), b = std::uint32_t(column);
  sum = fma_flushed(from_bf16(a >> 16), from_bf16(b >> 16), sum);
  return fma_flushed(from_bf16(a & 0xffff), from_bf16(b & 0xffff), sum);
}

inline std::int32_t dot_int8(std::int32_t sum, std::int32_t row, std::int32_t column) {
  const std::uint32_t a = std::uint32_t(row), b = std::uint32_t(column);
  for (int shift = 0; shift < 32; shift += 8) {
    sum += std::int32_t(a >> shift & 0xff) * std::int32_t(std::int8_t(b >> shift & 0xff));
  }
  return sum;
}

inline std::int32_t dot_signed(std::int32_t sum, std::int32_t row, std::int32_t column) {
  const std::uint32_t a = std::uint32_t(row), b = std::uint32_t(column);
  for (int shift = 0; shift < 32; shift += 8) {
    sum += std::int32_t(std::int8_t(a >> shift & 0xff)) * std::int32_t(std::int8_t(b >> shift & 0xff));
  }
  return sum;
}

inline float scale(float x, float whole) {
  if (std::isinf(whole)) return whole < 0 ? 0 : x * whole;
  return std::ldexp(x, int(std::fmax(std::fmin(whole, 1000.0f), -1000.0f)));
}

inline std::int16_t to_int16(float value) {
  return std::int16_t(std::nearbyint(std::fmin(std::fmax(value, -32768.0f), 32767.0f)));
}

inline float widen(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return number(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
  // 2^112 moves the exponent from a bias of 15 to one of 127, and makes denormals whole.
  return number(sign | bits(number(rest << 13) * 0x1p112f));
}

inline std::uint16_t narrow(float value) {
  const std::uint32_t whole = bits(value), sign = whole >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (value != value) return std::uint16_t(sign | 0x7e00 | (whole >> 13 & 0x3ff));
  if (size >= 65520) return std::uint16_t(sign | 0x7c00);
  // Below 2^-14 halves are multiples of 2^-24; above, 13 bits of the mantissa are rounded away.
  if (size < 0x1p-14f) return std::uint16_t(sign | std::uint32_t(std::nearbyint(size * 0x1p24f)));
  const std::uint32_t moved = bits(size) - (112u << 23);
  return std::uint16_t(sign | (moved + 0xfff + (moved >> 13 & 1)) >> 13);
}

// The eight tile registers.
struct alignas(64) Tile {
  unsigned char bytes[16][64];
};
inline thread_local Tile tiles[8];

inline void tile_load(int to, const void* from, std::size_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tiles[to].bytes[r], static_cast<const unsigned char*>(from) + r * stride, 64);
}

inline void tile_store(int from, void* to, std::size_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<unsigned char*>(to) + r * stride, tiles[from].bytes[r], 64);
}

inline void tile_zero(int tile) { tiles[tile] = {}; }

// Row m of `sum` gets, in column n, the products of row m of `a` with column n of `b`, whose rows are groups of the depth.
inline void tile_dot_int8(int sum, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    std::int32_t sums[16], row[16];
    std::memcpy(sums, tiles[sum].bytes[m], 64), std::memcpy(row, tiles[a].bytes[m], 64);
    for (int k = 0; k < 16; ++k) {
      std::int32_t columns[16];
      std::memcpy(columns, tiles[b].bytes[k], 64);
      for (int n = 0; n < 16; ++n) sums[n] = dot_int8(sums[n], row[k], columns[n]);
    }
    std::memcpy(tiles[sum].bytes[m], sums, 64);
  }
}

// tdpbf16ps adds the even and the odd products by themselves, then both, then to the sum.
inline void tile_dot_bf16(int sum, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    float sums[16], even[16] = {}, odd[16] = {};
    std::uint32_t row[16];
    std::memcpy(sums, tiles[sum].bytes[m], 64), std::memcpy(row, tiles[a].bytes[m], 64);
    for (int k = 0; k < 16; ++k) {
      std::uint32_t columns[16];
      std::memcpy(columns, tiles[b].bytes[k], 64);
      for (int n = 0; n < 16; ++n) {
        even[n] = fma_flushed(from_bf16(row[k] & 0xffff), from_bf16(columns[n] & 0xffff), even[n]);
        odd[n] = fma_flushed(from_bf16(row[k] >> 16), from_bf16(columns[n] >> 16), odd[n]);
      }
    }
    for (int n = 0; n < 16; ++n) sums[n] = flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
    std::memcpy(tiles[sum].bytes[m], sums, 64);
  }
}

}  // namespace qbert::twin
