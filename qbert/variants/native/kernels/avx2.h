// AVX2 without VNNI: vectors of 256 bits; int8 products by way of 16 bits, attention in fp32.
//
// Where the instruction that multiplies bytes adds two products, it saturates in 16 bits. So bytes of a row are 0 to 127:
// 2 * 127 * 128 fits. The other way is to give the row's signs to the weights (vpsignb), which keeps a bit more of the row,
// but is one instruction more in four, on the same ports: it took 1.5 times as long, hardly less than fp32.
#pragma once

namespace qbert {
constexpr int kBlockRows = 4;  // a block of 4 rows by 3 vectors of sums and its operands fit into 16 registers
constexpr int kLeastByte = 0, kGreatestByte = 127;  // of a quantized row (rows.h)
}  // namespace qbert

#include "avx.h"

namespace qbert {

struct Int8Dot {  // four unsigned bytes below 128 by four signed bytes, exact
  using Sum = Ints;
  static constexpr int kGroup = 4;
  static constexpr bool kByLane = false;
  static constexpr bool kPrefetch = true;  // its columns are weights, read once in a run
  static void add(Ints& sum, Ints row, Ints column) {
    using Shorts [[gnu::vector_size(32)]] = std::int16_t;
#if defined(__clang__)  // it reads columns from memory in the instruction; of assembly it would first copy them to the stack
    using Chars [[gnu::vector_size(32)]] = char;
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_int8(sum[i], row[i], column[i]),
              sum += Ints(__builtin_ia32_pmaddwd256(Shorts(__builtin_ia32_pmaddubsw256(Chars(row), Chars(column))),
                                                    1 - Shorts{})));
#else
    // One piece of assembly, as if it were one instruction: else GCC 12 computes some products early and keeps them in memory.
    QBERT_ASM(for (int i = 0; i < kLanes; ++i) sum[i] = twin::dot_int8(sum[i], row[i], column[i]), {
      Shorts products;
      asm("vpmaddubsw %3, %2, %1\n\t"  // sums of two
          "vpmaddwd %4, %1, %1\n\t"    // of four
          "vpaddd %1, %0, %0"
          : "+x"(sum), "=&x"(products)
          : "x"(row), "xm"(column), "x"(1 - Shorts{}));
    });
#endif
  }
  // The same of two steps, whose products are exact in 16 bits (steps.h).
  static void add_two(Ints& sum, Ints row, Ints next_row, const std::uint32_t* columns, const std::uint32_t* next_columns) {
    using Shorts [[gnu::vector_size(32)]] = std::int16_t;
    using Columns [[gnu::vector_size(32), gnu::aligned(4), gnu::may_alias]] = std::int32_t;
    const auto &column = *reinterpret_cast<const Columns*>(columns),
               &next_column = *reinterpret_cast<const Columns*>(next_columns);
    QBERT_ASM((add(sum, row, column), add(sum, next_row, next_column)), {
      Shorts products, next_products;
      asm("vpmaddubsw %4, %3, %1\n\t"  // sums of two
          "vpmaddubsw %6, %5, %2\n\t"
          "vpaddw %2, %1, %1\n\t"    // of four
          "vpmaddwd %7, %1, %1\n\t"  // of eight
          "vpaddd %1, %0, %0"
          : "+x"(sum), "=&x"(products), "=&x"(next_products)
          : "x"(row), "m"(column), "x"(next_row), "m"(next_column), "x"(1 - Shorts{}));
    });
  }
};

}  // namespace qbert

#include "../steps.h"
#include "../product.h"

namespace qbert {

struct Avx2 {
  static constexpr char kInstructions[] = "avx2";
  using Int8 = StepProduct<Int8Dot>;
  using Attention = VectorProduct<Fp32Dot>;
  using Kept = VectorProduct<Streamed<Fp32Dot>>;
  static bool permitted() { return true; }
  struct Session {};
};

}  // namespace qbert
