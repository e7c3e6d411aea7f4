// AMX: products of tiles, 16 rows by 16 columns at once, in int8 and bf16; the rest is AVX512-VNNI's.
//
// A tile register holds 16 rows of 64 bytes. Linux lets a process use them after it has asked; they are configured for each
// run and released after it, so that a thread that sleeps has no 8 KB more to save. The assembly clobbers memory, since the
// compiler does not know that tiles are loaded from it.
#pragma once

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

struct Int8Tiles {
  using Dot = Int8Dot;
  static constexpr bool kFirstRow = true;  // row 0 is the first token's rounding error: a row beside the others (rows.h)
  static constexpr int kFewRows = 3;  // as many are multiplied faster by vectors
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
  static constexpr bool kFirstRow = false;
  static constexpr int kFewRows = 0;
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

}  // namespace qbert

#include "../tiles.h"

namespace qbert {

struct Amx {
  static constexpr char kInstructions[] = "amx_int8 amx_bf16 avx512_vnni avx512_bf16";
  using Int8 = TileProduct<Int8Tiles>;
  using Attention = TileProduct<Bf16Tiles>;

  // Whether the system lets this process use tiles.
  static bool permitted() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's, in Linux's asm/prctl.h
    return QBERT_ASM(true, syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0);
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
