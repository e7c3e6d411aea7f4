// What is done to a row of numbers between two products: normalize it, and quantize it.
//
// A row of activations becomes unsigned bytes with a step and an offset of its own: x = offset + step * byte, where the
// offset is the row's least value and 255 steps reach its greatest. So one token's outliers cost no other token its
// precision, nothing has to be calibrated, and a row of equal values is exact. A product with weights, signed bytes w with a
// step for each output, is then
//
//     sum_k x_k w_k = step * weight_step * sum_k byte_k w_k + offset * (weight_step * sum_k w_k)
//
// of which the last bracket is known when the weights are packed: what is left of all scales and zero points is one
// multiplication and one fused multiply-add for each vector of sums (Linear in encoder.h).
#pragma once

#include "vector.h"

namespace qbert {

// The least and the greatest of `count` numbers; what follows up to a whole vector is zeros, which then take part.
inline void range(const float* row, int count, float& least, float& greatest) {
  Floats low = load<Floats>(row), high = low;
  for (int i = kLanes; i < count; i += kLanes) {
    const Floats values = load<Floats>(row + i);
    low = minimum(low, values);
    high = maximum(high, values);
  }
  least = across(low, minimum);
  greatest = across(high, maximum);
}

// The rows of tokens as bytes, with their steps and offsets.
//
// The head looks at the first token alone, so its rounding errors add up from layer to layer, while the others' reach it
// as a mean over many tokens. So the first token has two rows: what its bytes leave over is quantized again, into a row
// that comes before all others, and both rows' products are added. It has 16 bits, for one row more.
struct Quantized {
  std::uint8_t* bytes;
  std::size_t stride;
  float* step;
  float* offset;

  // Quantize the `count` numbers of token `token`; `rest` has room for as many.
  void put(int token, const float* values, int count, float* rest) const {
    const int row = token + 1;
    put_row(row, values, count);
    if (token > 0) return;
    for (int i = 0; i < count; i += kLanes) {
      const Floats steps = __builtin_convertvector(load<Bytes>(bytes + row * stride + i), Floats);
      store(rest + i, load<Floats>(values + i) - (steps * step[row] + offset[row]));
    }
    put_row(0, rest, count);
  }

 private:
  void put_row(int row, const float* values, int count) const {
    float least, greatest;
    range(values, count, least, greatest);
    step[row] = (greatest - least) / 255;
    offset[row] = least;
    const Floats inverse = broadcast(greatest > least ? 255 / (greatest - least) : 0);
    std::uint8_t* to = bytes + row * stride;
    for (int i = 0; i < count; i += kLanes) {
      // Adding 2^23 leaves the nearest whole number in the lowest bits.
      const Words steps = Words((load<Floats>(values + i) - least) * inverse + 8388608.0f) & 255;
      store(to + i, __builtin_convertvector(steps, Bytes));
    }
  }
};

// x = (x - mean) / sqrt(variance + epsilon) * weight + bias, of a row of `count` numbers with zeros up to a whole vector.
inline void normalize(float* row, int count, const float* weight, const float* bias, float epsilon) {
  Floats total{};
  for (int i = 0; i < count; i += kLanes) total += load<Floats>(row + i);
  const float mean = across(total, sum) / count;
  Floats squares{};
  for (int i = 0; i < count; i += kLanes) {
    const Floats from_mean = first_lanes(load<Floats>(row + i) - mean, count - i);
    squares += from_mean * from_mean;
  }
  const float variance = across(squares, sum) / count;
  const float scale = 1 / std::sqrt(variance + epsilon);
  for (int i = 0; i < count; i += kLanes) {  // weight and bias are zero after the row, and so the row is again
    store(row + i, (load<Floats>(row + i) - mean) * scale * load<Floats>(weight + i) + load<Floats>(bias + i));
  }
}

}  // namespace qbert
