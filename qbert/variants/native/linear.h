// A layer's product with a weight: in int8, or kept in float where int8 would cost too much of the answers.
//
// A kept product has the numbers of the kernel's attention: its weights are bf16, its rows bf16 where the processor has dot
// products of bf16; elsewhere both are multiplied as fp32. Sums are fp32. A model may hold a product in both precisions, so
// that what quantizing it costs is measured without loading the model again.
#pragma once

#include <optional>
#include <vector>

#include "memory.h"
#include "rows.h"

namespace qbert {

// Of one product, as Python passes it. Where a precision is absent, its pointers are null.
struct LinearTensors {
  const std::int8_t* weights;  // `outputs` by `inputs`
  const float* steps;
  const std::uint16_t* kept;  // the weights as bf16
  const float* biases;
};

// A product with int8 weights: a step, a bias and the scaled sum of the weights (rows.h) for each output.
struct Int8Linear {
  using Product = Kernel::Int8;
  Product::Layout panels;
  const std::uint32_t* packed;
  const float *step, *sums, *bias;

  // Pack `outputs` by `inputs` weights; the outputs are multiplied by `factor`.
  Int8Linear(Weights& memory, const std::int8_t* weights, const float* steps, const float* biases, int outputs, int inputs,
         float factor = 1)
      : panels(outputs, int(round_up(inputs, 4)) / 4) {
    packed = memory.make<std::uint32_t>(panels.size(),
                                        [&](std::uint32_t* to) { pack(weights, inputs, inputs, panels, to); });
    const std::size_t whole = round_up(outputs, Product::kColumns);
    step = memory.make<float>(3 * whole, [&](float* numbers) {
      for (int n = 0; n < outputs; ++n) {
        long sum = 0;
        for (int k = 0; k < inputs; ++k) sum += weights[std::size_t(n) * inputs + k];
        numbers[n] = steps[n] * factor;
        numbers[whole + n] = float(sum * double(steps[n]) * factor);
        numbers[2 * whole + n] = biases[n] * factor;
      }
    });
    sums = step + whole, bias = step + 2 * whole;
  }

  template <class Write>
  struct Epilogue {
    static constexpr bool kStores = false;
    const Int8Linear& linear;
    const Quantized& rows;
    Write write;

    template <std::size_t N>
    auto at(int column) const {
      using Vectors = Several<Floats, N>;
      const auto step = load_several<Floats, N>(linear.step + column), sums = load_several<Floats, N>(linear.sums + column),
                 bias = load_several<Floats, N>(linear.bias + column);
      const Texts texts = *rows.texts;
      return [=, *this](int first, int r, const Several<Ints, N>& sum) {
        const int row = first + r;
        const float row_step = rows.step[row], row_offset = rows.offset[row];
        Vectors values = each(
            [=](Ints sum, Floats step, Floats sums, Floats bias) {
              return __builtin_convertvector(sum, Floats) * (step * row_step) + (sums * row_offset + bias);
            },
            sum, step, sums, bias);
        if (first < 2 * texts.count && row < 2 * texts.count) {  // the rounding errors of first tokens, and those tokens
          if (row < texts.count) {
            store_several(texts.errors + row * texts.errors_stride + column,
                          each([](Floats value, Floats bias) { return value - bias; }, values, bias));
            return;
          }
          const auto error = load_several<Floats, N>(texts.errors + (row - texts.count) * texts.errors_stride + column);
          values = each([](Floats value, Floats error) { return value + error; }, values, error);
        }
        write(row - texts.count, column, values);
      };
    }
  };

  // Call `write(token, column, values)` with some vectors at a time of the product of the first `count` tokens; zeros follow
  // the last column.
  template <class Write>
  void operator()(const Quantized& rows, int count, std::int32_t* scratch, const Write& write) const {
    Product::run(rows.bytes, rows.stride, count + rows.texts->count, packed, panels, Epilogue<Write>{*this, rows, write},
                 scratch);
  }
};

// A product with bf16 weights, in bf16 or fp32, and a bias for each output.
struct KeptLinear {
  using Product = Kernel::Kept;
  using Dot = Product::Dot;
  using Element = Dot::Element;
  Product::Layout panels;
  const std::uint32_t* packed;
  const float* bias;
  float factor;

  // Pack `outputs` by `inputs` weights; the outputs are multiplied by `factor`.
  KeptLinear(Weights& memory, const std::uint16_t* weights, const float* biases, int outputs, int inputs, float factor = 1)
      : panels(outputs, (inputs + Dot::kGroup - 1) / Dot::kGroup), factor(factor) {
    packed = memory.make<std::uint32_t>(panels.size(), [&](std::uint32_t* to) {
      if constexpr (Dot::kGroup == 2) {
        pack(weights, 2 * inputs, 2 * inputs, panels, to);
      } else {
        std::vector<std::uint32_t> widened(weights, weights + std::size_t(outputs) * inputs);
        for (auto& bits : widened) bits <<= 16;
        pack(widened.data(), 4 * inputs, 4 * inputs, panels, to);
      }
    });
    bias = memory.make<float>(round_up(outputs, Product::kColumns), [&](float* numbers) {
      for (int n = 0; n < outputs; ++n) numbers[n] = biases[n] * factor;
    });
  }

  template <class Write>
  struct Epilogue {
    static constexpr bool kStores = false;
    const KeptLinear& linear;
    Write write;

    template <std::size_t N>
    auto at(int column) const {
      const auto bias = load_several<Floats, N>(linear.bias + column);
      return [=, factor = linear.factor, *this](int first, int r, const Several<Floats, N>& sum) {
        write(first + r, column, each([=](Floats sum, Floats bias) { return sum * factor + bias; }, sum, bias));
      };
    }
  };

  // The same as Int8Linear's, with rows of elements.
  template <class Write>
  void operator()(const Elements<Dot>& rows, int count, std::int32_t* scratch, const Write& write) const {
    Product::run(rows.elements, rows.stride * sizeof(Element), count, packed, panels, Epilogue<Write>{*this, write}, scratch);
  }
};

// What a product reads: rows of tokens in the precisions that the products at hand have.
struct Rows {
  Quantized bytes;
  Elements<KeptLinear::Dot> numbers;
};

// In which of them a row is wanted.
struct Wanted {
  bool bytes = false, numbers = false;
};

// A product that has one precision or both, and runs in one.
class Linear {
 public:
  Linear(Weights& memory, const LinearTensors& tensors, int outputs, int inputs, float factor = 1) {
    if (tensors.weights) int8_.emplace(memory, tensors.weights, tensors.steps, tensors.biases, outputs, inputs, factor);
    if (tensors.kept) kept_.emplace(memory, tensors.kept, tensors.biases, outputs, inputs, factor);
    keeps_ = !int8_;
  }

  // Whether it now runs as asked.
  bool keep(bool keeps) {
    if (!(keeps ? kept_.has_value() : int8_.has_value())) return false;
    keeps_ = keeps;
    return true;
  }

  void add_to(Wanted& wanted) const { (keeps_ ? wanted.numbers : wanted.bytes) = true; }

  template <class Write>
  void operator()(const Rows& rows, int count, std::int32_t* scratch, const Write& write) const {
    if (keeps_) {
      (*kept_)(rows.numbers, count, scratch, write);
    } else {
      (*int8_)(rows.bytes, count, scratch, write);
    }
  }

 private:
  std::optional<Int8Linear> int8_;
  std::optional<KeptLinear> kept_;
  bool keeps_ = false;
};

}  // namespace qbert
