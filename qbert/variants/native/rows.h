// What happens to a row between two products: normalization and quantization.
//
// A row of activations is quantized to unsigned bytes with its own step and offset: x = offset + step * byte. The offset is
// the row's minimum; its maximum is 255 steps above. So a token's outliers cost the others no precision, nothing has to be
// calibrated, and a row of equal values is exact. Weights are signed bytes w with a step for each output; the product is
//
//     sum_k x_k w_k = step * weight_step * sum_k byte_k w_k + offset * (weight_step * sum_k w_k)
//
// The last bracket is computed when the weights are packed, so all scales and zero points cost one multiplication and one
// fused multiply-add for each vector of sums (Linear in encoder.h).
#pragma once

#include "vector.h"

namespace qbert {

// Find the lowest and the highest of `count` numbers and of the zeros that fill up the last vector.
inline void range(const float* row, int count, float& lowest, float& highest) {
  Floats minima = load<Floats>(row), maxima = minima;
  for (int i = kLanes; i < count; i += kLanes) {
    const Floats values = load<Floats>(row + i);
    minima = minimum(minima, values);
    maxima = maximum(maxima, values);
  }
  lowest = reduce(minima, minimum);
  highest = reduce(maxima, maximum);
}

// The rows of tokens as bytes, with a step and an offset for each row.
//
// The head reads the first token alone. That token's rounding errors add up from layer to layer; those of the others reach
// it as a mean over many tokens. So the first token has 16 bits, in two rows, whose products are added:
//
//     row 0   [ rounding error of token 0, as bytes ]  step, offset  \  token 0
//     row 1   [ token 0, as bytes                   ]  step, offset  /
//     row 2   [ token 1, as bytes                   ]  step, offset  -  token 1
//     row 3   [ token 2, as bytes                   ]  step, offset  -  token 2
//     ...
struct Quantized {
  std::uint8_t* bytes;
  std::size_t stride;
  float* step;
  float* offset;

  // Quantize the `count` numbers of token `token`; `error` is scratch of that size.
  void quantize(int token, const float* values, int count, float* error) const {
    const int row = token + 1;
    quantize_row(row, values, count);
    if (token > 0) return;
    for (int i = 0; i < count; i += kLanes) {
      const Floats steps = __builtin_convertvector(load<Bytes>(bytes + row * stride + i), Floats);
      store(error + i, load<Floats>(values + i) - (steps * step[row] + offset[row]));
    }
    quantize_row(0, error, count);
  }

 private:
  void quantize_row(int row, const float* values, int count) const {
    float lowest, highest;
    range(values, count, lowest, highest);
    step[row] = (highest - lowest) / 255;
    offset[row] = lowest;
    const Floats inverse = broadcast(highest > lowest ? 255 / (highest - lowest) : 0);
    std::uint8_t* to = bytes + row * stride;
    for (int i = 0; i < count; i += kLanes) {
      // Adding 2^23 rounds to the nearest whole number, in the lowest bits.
      const UInts steps = UInts((load<Floats>(values + i) - lowest) * inverse + 8388608.0f) & 255;
      store(to + i, __builtin_convertvector(steps, Bytes));
    }
  }
};

// x = (x - mean) / sqrt(variance + epsilon) * weight + bias, for a row of `count` numbers with zeros up to a whole vector.
inline void normalize(float* row, int count, const float* weight, const float* bias, float epsilon) {
  Floats total{};
  for (int i = 0; i < count; i += kLanes) total += load<Floats>(row + i);
  const float mean = reduce(total, sum) / count;
  Floats squares{};
  for (int i = 0; i < count; i += kLanes) {
    const Floats from_mean = first_lanes(load<Floats>(row + i) - mean, count - i);
    squares += from_mean * from_mean;
  }
  const float variance = reduce(squares, sum) / count;
  const float scale = 1 / std::sqrt(variance + epsilon);
  for (int i = 0; i < count; i += kLanes) {  // weight and bias end with zeros, so the row does too
    store(row + i, (load<Floats>(row + i) - mean) * scale * load<Floats>(weight + i) + load<Floats>(bias + i));
  }
}

}  // namespace qbert
