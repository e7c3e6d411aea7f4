// What this core can do at most: products in registers, memory read, and our own product on data in its caches.
#pragma once

#include "encoder.h"

namespace qbert {

enum Precision { kFp32, kBf16, kInt8 };

// Multiply and add in registers, and return the operations done: 0 where the kernel has no product of that precision.
inline std::int64_t in_registers(int precision, std::int64_t repeats) {
  [[maybe_unused]] const Kernel::Session session;
  switch (precision) {
    case kInt8: return Kernel::Int8::in_registers(repeats);
    case kBf16: return Kernel::Attention::Dot::kGroup == 2 ? Kernel::Attention::in_registers(repeats) : 0;
    default: return VectorProduct<Fp32Dot>::in_registers(repeats);
  }
}

// Read `count` bytes in order, prefetched as weights are, and return their sum by dwords.
inline std::int64_t read(const unsigned char* bytes, std::int64_t count) {
  constexpr std::int64_t kAhead = 8192, kLine = 64;
  Ints sums[4] = {};
  for (std::int64_t i = 0; i + 4 * kLine <= count; i += 4 * kLine) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      __builtin_prefetch(bytes + i + line * kLine + kAhead, 0, 2);
      for (int part = 0; part < kLine; part += int(sizeof(Ints))) {
        sums[line] += load<Ints>(bytes + i + line * kLine + part);
      }
    }
  }
  const Ints total = sums[0] + sums[1] + sums[2] + sums[3];
  std::int64_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result += total[lane];
  return result;
}

// One int8 product of an encoder, with rows of zeros, on which the time does not depend, and weights that spread as a model's.
class HotProduct {
 public:
  HotProduct(int tokens, int inputs, int outputs)
      : tokens_(tokens),
        stride_(round_up(outputs, 32) + 32),
        weights_(std::size_t(inputs) * outputs),
        numbers_(outputs),
        linear_(packed_, spread(weights_), numbers_.data(), numbers_.data(), outputs, inputs) {
    const std::size_t rows = round_up(tokens, Kernel::Int8::kRows) + 1, stride = round_up(inputs, 64) + 64;
    rows_ = {arena_.allocate<std::uint8_t>(rows * stride), stride, arena_.allocate<float>(rows),
             arena_.allocate<float>(rows), nullptr, &texts_};
    texts_.errors = arena_.allocate<float>(stride_);
    scratch_ = arena_.allocate<std::int32_t>(Kernel::Int8::scratch_size(rows));
    results_ = arena_.allocate<Half>(rows * stride_);
  }

  void run() const {
    [[maybe_unused]] const Kernel::Session session;
    linear_(rows_, tokens_, scratch_, [this](int token, int column, const auto& values) {
      store_between(results_ + token * stride_ + column, values);
    });
  }

 private:
  // Fill `weights` with sums of four uniform numbers, of a standard deviation of 37.
  static const std::int8_t* spread(std::vector<std::int8_t>& weights) {
    std::uint32_t state = 1;
    for (auto& weight : weights) {
      state = state * 1664525 + 1013904223;
      int sum = 0;
      for (int part = 0; part < 4; ++part) sum += int(state >> (8 * part) & 63) - 31;
      weight = std::int8_t(std::max(-127, std::min(127, sum)));
    }
    return weights.data();
  }

  int tokens_;
  std::size_t stride_;
  std::vector<std::int8_t> weights_;
  std::vector<float> numbers_;
  Arena arena_;
  Weights packed_;
  Int8Linear linear_;
  Texts texts_;
  Quantized rows_;
  std::int32_t* scratch_;
  Half* results_;
};

}  // namespace qbert
