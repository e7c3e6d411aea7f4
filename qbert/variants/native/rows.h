// What happens to a row between two products: normalization and quantization.
//
// A row of activations is quantized to bytes with its own step and offset: x = offset + step * byte. Its minimum and maximum
// are the least and the greatest byte that the kernel multiplies: 0 and 255, where it has no others (kernels/). So a token's
// outliers cost the others no precision, nothing has to be calibrated, and a row of equal values is exact. Weights are signed
// bytes w with a step for each output; the product is
//
//     sum_k x_k w_k = step * weight_step * sum_k byte_k w_k + offset * (weight_step * sum_k w_k)
//
// The last bracket is computed when the weights are packed, so all scales and zero points cost one multiplication and one
// fused multiply-add for each vector of sums (Linear in encoder.h).
#pragma once

#include "vector.h"

namespace qbert {

// Between two products, rows are kept as halves: half as much to write and read, and at most a sixteenth of a step of
// quantization is lost. Sums over layers are kept as floats. A model whose weights may lead beyond halves (ranges.py) runs in
// a library that is compiled with floats here, too. Several rows are reduced together, so that they do not wait for one
// another's additions.
inline Floats load_floats(const float* from) { return load<Floats>(from); }
inline Floats load_floats(const Half* from) { return widen(load<Words>(from)); }

template <std::size_t N>
void store_between(Half* to, const Several<Floats, N>& values) {
  store_several(&to->bits, each(narrow, values));
}

template <std::size_t N>
void store_between(float* to, const Several<Floats, N>& values) {
  store_several(to, values);
}

// Beyond the greatest half, halves are infinite: numbers are held at it, before they are stored or, since that is rarely
// needed, when an infinite one is found.
inline Floats held(Floats values) {
  return minimum(maximum(values, broadcast(-kGreatest)), broadcast(kGreatest));
}

inline void hold(Half* row, int count) {
  for (int i = 0; i < count; ++i) {
    if ((row[i].bits & 0x7fff) == 0x7c00) --row[i].bits;
  }
}

inline void hold(float* row, int count) {
  for (int i = 0; i < count; i += kLanes) store(row + i, held(load<Floats>(row + i)));
}

template <int Rows>
struct Range {
  Floats lowest[Rows], highest[Rows];

  Range() {
    for (int r = 0; r < Rows; ++r) lowest[r] = broadcast(INFINITY), highest[r] = broadcast(-INFINITY);
  }
  void add(int r, Floats values) {
    lowest[r] = minimum(values, lowest[r]);
    highest[r] = maximum(values, highest[r]);
  }
};

template <int Rows, class Number>
Range<Rows> range_of(const Number* values, std::size_t stride, int count) {
  Range<Rows> range;
  for (int i = 0; i < count; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) range.add(r, load_floats(values + r * stride + i));
  }
  return range;
}

// The texts whose rows go through products together. The first tokens of all of them come first, in rows 0, 1, ..., since the
// last layer computes nothing else; then come the others.
struct Texts {
  int count = 1;
  float* errors = nullptr;  // of each text and column, the product of the first token's rounding error (below)
  std::size_t errors_stride = 0;
};

// The rows of tokens as bytes, with a step and an offset for each row.
//
// The head reads the first token alone. That token's rounding errors add up from layer to layer; those of the others reach
// it as a mean over many tokens. So the first token of a text has 16 bits, in two rows, whose products are added. With two
// texts, A and B:
//
//     rows 0, 1   the rounding errors of token 0 of A and of B, as bytes
//     rows 2, 3   token 0 of A and of B, as bytes
//     rows 4 ...  the other tokens of A, then those of B
struct Quantized {
  std::uint8_t* bytes;
  std::size_t stride;
  float* step;
  float* offset;
  float* error;  // scratch for a row
  const Texts* texts;

  // Quantize tokens from `token` on: `count` numbers of each, their rows `values_stride` numbers apart. Of the numbers up
  // to a whole vector, which are zeros, all are quantized.
  template <int Rows, class Number>
  void quantize(int token, Number* values, std::size_t values_stride, int count) const {
    Range<Rows> range = range_of<Rows>(values, values_stride, count);
    if constexpr (std::is_same_v<Number, Between>) {
      Floats greatest{};
      for (int r = 0; r < Rows; ++r) greatest = maximum(greatest, maximum(range.highest[r], -range.lowest[r]));
      if (reduce(greatest, maximum) > kGreatest) {
        for (int r = 0; r < Rows; ++r) hold(values + r * values_stride, int(round_up(count, kLanes)));
        range = range_of<Rows>(values, values_stride, count);
      }
    }
    quantize(token, values, values_stride, count, range);
  }

  // The same, with the lowest and highest of each row known.
  template <int Rows, class Number>
  void quantize(int token, const Number* values, std::size_t values_stride, int count, const Range<Rows>& range) const {
    for (int r = 0; r < Rows; ++r) {
      quantize_row(texts->count + token + r, values + r * values_stride, count, reduce(range.lowest[r], minimum),
                   reduce(range.highest[r], maximum));
    }
    for (int r = 0; r < Rows && token + r < texts->count; ++r) {
      quantize_error(token + r, values + r * values_stride, count);
    }
  }

 private:
  // Quantize the rounding error of the first token of a text, which has the numbers `values`.
  template <class Number>
  void quantize_error(int text, const Number* values, int count) const {
    const int row = texts->count + text;
    Range<1> errors;
    for (int i = 0; i < count; i += kLanes) {
      const Floats steps = __builtin_convertvector(load<Bytes>(bytes + row * stride + i), Floats);
      const Floats error_of = load_floats(values + i) - (steps * step[row] + offset[row]);
      store(error + i, error_of);
      errors.add(0, error_of);
    }
    quantize_row(text, error, count, reduce(errors.lowest[0], minimum), reduce(errors.highest[0], maximum));
  }

  template <class Number>
  void quantize_row(int row, const Number* values, int count, float lowest, float highest) const {
    constexpr int kSteps = kGreatestByte - kLeastByte;
    step[row] = (highest - lowest) / kSteps;
    offset[row] = lowest - kLeastByte * step[row];
    const Floats inverse = broadcast(highest > lowest ? kSteps / (highest - lowest) : 0);
    std::uint8_t* to = bytes + row * stride;
    for (int i = 0; i < count; i += kLanes) {
      // Adding 2^23 rounds to the nearest whole number, in the lowest bits.
      const Ints steps = Ints((load_floats(values + i) - lowest) * inverse + 8388608.0f) & 255;
      store(to + i, __builtin_convertvector(steps + kLeastByte, Bytes));
    }
  }
};

// The rows of tokens as the elements that `Dot` multiplies, for products that are not int8. First tokens have one row here.
template <class Dot>
struct Elements {
  typename Dot::Element* elements;
  std::size_t stride;

  // Convert tokens from `token` on: `count` numbers of each, and those up to a whole vector, which are zeros.
  template <int Rows, class Number>
  void convert(int token, const Number* values, std::size_t values_stride, int count) const {
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < count; i += kLanes) {
        Floats numbers = load_floats(values + r * values_stride + i);
        if constexpr (std::is_same_v<Number, Between>) numbers = held(numbers);
        Dot::write(elements + (token + r) * stride + i, Several<Floats, 1>{numbers});
      }
    }
  }
};

// x = (x - mean) / sqrt(variance + epsilon) * weight + bias, for rows of `count` numbers with zeros up to a whole vector.
// Where `added` is not null, its rows are added to x first. Returns the lowest and highest of each row.
template <int Rows>
Range<Rows> normalize(float* x, std::size_t stride, const Between* added, std::size_t added_stride, int count,
                      const float* weight, const float* bias, float epsilon) {
  Floats totals[Rows] = {}, squares[Rows] = {};
  for (int i = 0; i < count; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      Floats values = load<Floats>(x + r * stride + i);
      if (added) {
        values += load_floats(added + r * added_stride + i);
        store(x + r * stride + i, values);
      }
      totals[r] += values;
    }
  }
  float mean[Rows], scale[Rows];
  for (int r = 0; r < Rows; ++r) mean[r] = reduce(totals[r], sum) / count;
  for (int i = 0; i < count; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      Floats from_mean = load<Floats>(x + r * stride + i) - mean[r];
      if (i + kLanes > count) from_mean = first_lanes(from_mean, count - i);
      squares[r] += from_mean * from_mean;
    }
  }
  for (int r = 0; r < Rows; ++r) scale[r] = 1 / std::sqrt(reduce(squares[r], sum) / count + epsilon);
  Range<Rows> range;
  for (int i = 0; i < count; i += kLanes) {  // weight and bias end with zeros, so the row does too
    const Floats factor = load<Floats>(weight + i), constant = load<Floats>(bias + i);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Floats values = (load<Floats>(x + r * stride + i) - mean[r]) * scale[r] * factor + constant;
      store(x + r * stride + i, values);
      range.add(r, values);
    }
  }
  return range;
}

}  // namespace qbert
