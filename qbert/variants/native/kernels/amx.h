// AMX: products of tiles, 16 rows by 16 columns at once, in int8 and bf16; the rest is AVX512-VNNI's.
//
// A tile register holds 16 rows of 64 bytes. Linux lets a process use them after it has asked; they are configured for each
// run and released after it, so that a thread that sleeps has no 8 KB more to save. The assembly clobbers memory, since the
// compiler does not know that tiles are loaded from it.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "avx512_vnni.h"
#include "twin.h"

namespace qbert {

template <int To>
inline void tile_load(const void* from, std::size_t stride) {
  QBERT_ASM(twin::tile_load(To, from, stride),
            asm volatile("tileloadd (%0,%1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(To) : "memory"));
}

template <int From>
inline void tile_store(void* to, std::size_t stride) {
  QBERT_ASM(twin::tile_store(From, to, stride),
            asm volatile("tilestored %%tmm%c2, (%0,%1)" ::"r"(to), "r"(stride), "i"(From) : "memory"));
}

template <int Tile>
inline void tile_zero() {
  QBERT_ASM(twin::tile_zero(Tile), asm volatile("tilezero %%tmm%c0" ::"i"(Tile)));
}

// By how much of 128 the fraction of TablePowers is too great, for each fraction. It is no member: of an inline variable the
// guard would be one for all libraries in the process, and the second would have no table.
struct Excess {
  alignas(64) std::uint8_t at[128];
  Excess() {
    for (int i = 0; i < 128; ++i) at[i] = std::uint8_t(std::lround(i - 128 * (std::exp2(i / 128.0) - 1)));
  }
};
static const Excess kExcess;

// 2^(score - greatest) without a polynomial: as an int16, a number of 128ths of a power of two has the exponent and fraction
// of a bf16, but the fraction is up to 11 of 128 too great. A table tells by how much (after N. Schraudolph, "A Fast, Compact
// Approximation of the Exponential Function", 1999). The error is twice that of rounding to bf16.
class TablePowers {
 public:
  static constexpr std::size_t kVectors = 2;

  static void write(std::uint16_t* to, const Several<Floats, 2>& scores, float greatest, Floats& total) {
    const float one = 128 * (127 - greatest);  // the exponent of 2^0 is 127
    const Shorts parts = packed(scores[0] * 128.0f + one, scores[1] * 128.0f + one);
    const Shorts powers = parts > 0 ? parts : Shorts{};
    const Shorts results = powers - excess(powers);
    store(to, results);
    Bf16Dot::add(total, Ints(results), 0x3f803f80 - Ints{});  // times 1
  }

 private:
  using Shorts [[gnu::vector_size(64)]] = std::int16_t;
  using Quads [[gnu::vector_size(64)]] = std::int64_t;

  // Both vectors as int16, to the nearest, held where int16 ends.
  static Shorts packed(Floats low, Floats high) {
    Shorts result;
    QBERT_ASM(for (int i = 0; i < 32; ++i) result[i] = twin::to_int16(i < 16 ? low[i] : high[i - 16]), {
      Ints a, b;
      asm("vcvtps2dq %1, %0" : "=v"(a) : "v"(low));
      asm("vcvtps2dq %1, %0" : "=v"(b) : "v"(high));
      asm("vpackssdw %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));  // four of a, four of b, and so on
      result = Shorts(__builtin_shufflevector(Quads(result), Quads(result), 0, 2, 4, 6, 1, 3, 5, 7));
    });
    return result;
  }

  // The table's entry for the lower seven bits of each.
  static Shorts excess(Shorts powers) {
    QBERT_ASM(for (int i = 0; i < 32; ++i) powers[i] = kExcess.at[powers[i] & 127], {
      asm("vpermi2b %2, %1, %0%{%3%}%{z%}"
          : "+v"(powers)
          : "v"(load<Ints>(kExcess.at)), "v"(load<Ints>(kExcess.at + 64)), "Yk"(0x5555555555555555ull));
    });
    return powers;
  }
};

struct Int8Tiles {
  using Dot = Int8Dot;
  using Powers = void;
  static constexpr bool kFirstRow = true;  // row 0 is the first token's rounding error: a row beside the others (rows.h)
  template <int To>
  static void load_rows(const void* from, std::size_t stride) {  // past the L1 cache, so that the columns stay in it
    QBERT_ASM(twin::tile_load(To, from, stride),
              asm volatile("tileloaddt1 (%0,%1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(To) : "memory"));
  }
  template <int Sum, int Row, int Column>
  static void add() {
    QBERT_ASM(twin::tile_dot_int8(Sum, Row, Column),
              asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Row), "i"(Column)));
  }
};

struct Bf16Tiles {
  using Dot = Bf16Dot;
  using Powers = TablePowers;
  static constexpr bool kFirstRow = false;
  template <int To>
  static void load_rows(const void* from, std::size_t stride) {
    tile_load<To>(from, stride);
  }
  template <int Sum, int Row, int Column>
  static void add() {
    QBERT_ASM(twin::tile_dot_bf16(Sum, Row, Column),
              asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Row), "i"(Column)));
  }
};

struct Bf16WeightTiles : Bf16Tiles {
  using Dot = Streamed<Bf16Dot>;
};

}  // namespace qbert

#include "../tiles.h"

namespace qbert {

struct Amx {
  static constexpr char kInstructions[] = "amx_int8 amx_bf16 avx512_vnni avx512_bf16";
  using Int8 = TileProduct<Int8Tiles>;
  using Attention = TileProduct<Bf16Tiles>;
  using Kept = TileProduct<Bf16WeightTiles>;

  // Whether the system lets this process use tiles, and the processor has AVX512-VBMI, which TablePowers needs: every one
  // with AMX does, but a virtual machine may hide it.
  static bool permitted() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's, in Linux's asm/prctl.h
    constexpr unsigned kVbmi = 1u << 1;  // of ecx, in leaf 7
#if defined(QBERT_TWIN)
    return true;
#else
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & kVbmi) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
  }

  class Session {
   public:
    Session() {
      struct alignas(64) {
        std::uint8_t palette = 1, start = 0, reserved[14] = {};
        std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } configuration;
      QBERT_ASM((void)configuration, asm volatile("ldtilecfg %0" ::"m"(configuration)));
    }
    ~Session() { QBERT_ASM((void)0, asm volatile("tilerelease")); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };
};

}  // namespace qbert
