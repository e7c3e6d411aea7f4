// A BERT encoder with a classification head: token ids in, logits out, one text at a time, on one thread.
//
// Every layer's six products are int8, attention and residual sums are not quantized. Only real tokens are computed, so
// there is no mask. All rows go through one product before the next: in blocks of 64 rows, what lies between two products
// would stay in the second cache, but weights would be read once for each block, which took 4 % longer.
//
// The head looks at the first token alone. So in the last layer only keys and values are computed for every token; query,
// attention, output and feed-forward for the first one. That changes no result.
#pragma once

#include <vector>

#include "attention.h"
#include "memory.h"
#include "product.h"
#include "rows.h"

namespace qbert {

// A product with int8 weights: one step for each output, and what is left of the rows' offsets.
struct Linear {
  Panels panels;
  const std::uint32_t* packed;
  const float *step, *sums, *bias;

  // weights: `outputs` by `inputs` signed bytes; step and bias: `outputs` numbers, all times `factor`.
  Linear(Arena& arena, const std::int8_t* weights, const float* steps, const float* biases, int outputs, int inputs,
         float factor = 1)
      : panels(outputs, int(round_up(inputs, 4)) / 4) {
    auto* to = arena.take<std::uint32_t>(panels.size());
    pack(weights, inputs, inputs, panels, to);
    packed = to;
    const std::size_t whole = round_up(outputs, kLanes);
    auto* numbers = arena.take<float>(3 * whole);
    for (int n = 0; n < outputs; ++n) {
      long sum = 0;
      for (int k = 0; k < inputs; ++k) sum += weights[std::size_t(n) * inputs + k];
      numbers[n] = steps[n] * factor;
      numbers[whole + n] = float(sum * double(steps[n]) * factor);
      numbers[2 * whole + n] = biases[n] * factor;
    }
    step = numbers, sums = numbers + whole, bias = numbers + 2 * whole;
  }

  template <class Put>
  struct Finish {
    const Linear& linear;
    const Quantized& rows;
    Put put;

    auto columns(int column) const {
      const Floats step = load<Floats>(linear.step + column), sums = load<Floats>(linear.sums + column),
                   bias = load<Floats>(linear.bias + column);
      return [=, rest = Floats{}](int first, int r, Ints sum) mutable {
        const int row = first + r;
        Floats values =
            __builtin_convertvector(sum, Floats) * (step * rows.step[row]) + (sums * rows.offset[row] + bias);
        if (r < 2 && first == 0) {  // what is left over of the first token, and that token
          if (r == 0) {
            rest = values - bias;
            return;
          }
          values += rest;
        }
        put(row - 1, column, values);
      };
    }
  };

  // Pass to `put` each vector of the product of `count` tokens: token, column, values; zeros after the last column.
  template <class Put>
  void operator()(const Quantized& rows, int count, const Put& put) const {
    product<Int8Dot>(rows.bytes, rows.stride, count + 1, packed, panels, Finish<Put>{*this, rows, put});
  }
};

// Read by Python's ctypes: keep the order (encoder.py).
struct Geometry {
  std::int64_t vocabulary, embedding, types, positions, hidden, heads, layers, intermediate, labels;
  std::int64_t activation, head_activation;
  std::int64_t padding;  // positions count from here + 1, and padding tokens not at all; or -1
  double epsilon;
};

enum HeadActivation { kHeadTanh, kHeadGelu, kHeadRelu };

class Encoder {
 public:
  explicit Encoder(const Geometry& geometry) : g_(geometry) {
    const int widest = int(std::max({g_.hidden, g_.intermediate, g_.embedding}));
    stride_ = Attention<AttentionDot>::row_elements(int(g_.hidden));
    wide_stride_ = round_up(widest, kLanes);
    const std::size_t tokens = g_.positions, scores = Kernel::Scratch::row_size(int(tokens));
    x_ = arena_.take<float>(tokens * stride_);
    context_ = arena_.take<float>(tokens * stride_);
    for (auto*& rows : qkv_) rows = arena_.take<Kernel::Element>((tokens + 1) * stride_);
    wide_ = arena_.take<float>(tokens * wide_stride_);
    rest_ = arena_.take<float>(wide_stride_);
    quantized_ = quantized(tokens, std::max(g_.hidden, g_.embedding));
    wide_quantized_ = quantized(tokens, g_.intermediate);
    const std::size_t panels = Kernel::Scratch::panels_size(int(tokens), int(g_.hidden / g_.heads));
    scratch_ = {arena_.take<std::uint32_t>(panels), arena_.take<std::uint32_t>(panels),
                arena_.take<float>(kTileRows * scores), arena_.take<Kernel::Element>(kTileRows * scores),
                arena_.take<float>(kTileRows)};
  }

  // The weights, in the order of encoder.py; int8 matrices come as weights, steps and biases.
  void set_embeddings(const void* const* tensors) {
    const std::size_t size = g_.embedding;
    auto* words = arena_.take<std::uint16_t>(g_.vocabulary * size);
    std::memcpy(words, tensors[0], g_.vocabulary * size * sizeof(std::uint16_t));
    words_ = words;
    positions_ = copied(tensors[1], g_.positions + g_.padding + 1, size);
    types_ = copied(tensors[2], g_.types, size);
    norm_[0] = copied(tensors[3], 1, size), norm_[1] = copied(tensors[4], 1, size);
    if (g_.embedding != g_.hidden) project_.push_back(linear(tensors + 5, g_.hidden, g_.embedding));
  }

  void add_layer(const void* const* tensors) {
    const std::int64_t h = g_.hidden, wide = g_.intermediate;
    // Scores are powers of two (attention.h).
    const float factor = float(1 / (std::log(2.0) * std::sqrt(double(h / g_.heads))));
    layers_.push_back({linear(tensors, h, h, factor), linear(tensors + 3, h, h), linear(tensors + 6, h, h),
                       linear(tensors + 9, h, h), linear(tensors + 12, wide, h), linear(tensors + 15, h, wide),
                       copied(tensors[18], 1, h), copied(tensors[19], 1, h), copied(tensors[20], 1, h),
                       copied(tensors[21], 1, h)});
  }

  void set_head(const void* const* tensors) {
    dense_[0] = copied(tensors[0], g_.hidden, g_.hidden), dense_[1] = copied(tensors[1], 1, g_.hidden);
    labels_[0] = copied(tensors[2], g_.labels, g_.hidden), labels_[1] = copied(tensors[3], 1, g_.labels);
  }

  // Whether every id is one that there is; only then may run be called.
  bool knows(const std::int64_t* ids, const std::int64_t* types, std::int64_t tokens) const {
    if (tokens < 1 || tokens > g_.positions || std::int64_t(layers_.size()) != g_.layers || !labels_[0]) return false;
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (ids[i] < 0 || ids[i] >= g_.vocabulary) return false;
      if (types && (types[i] < 0 || types[i] >= g_.types)) return false;
    }
    return true;
  }

  void run(const std::int64_t* ids, const std::int64_t* types, int tokens, float* logits) {
    embed(ids, types, tokens);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      run_layer(layers_[layer], tokens, layer + 1 == layers_.size() ? 1 : tokens);
    }
    classify(logits);
  }

 private:
  using Kernel = Attention<AttentionDot>;

  struct Layer {
    Linear query, key, value, output, up, down;
    const float *attention_weight, *attention_bias, *weight, *bias;  // of the two LayerNorms
  };

  void embed(const std::int64_t* ids, const std::int64_t* types, int tokens) {
    const std::size_t size = g_.embedding;
    const std::size_t stride = project_.empty() ? stride_ : wide_stride_;
    std::int64_t position = g_.padding;
    for (int t = 0; t < tokens; ++t) {
      float* row = project_.empty() ? x_ + t * stride : wide_;
      const std::uint16_t* word = words_ + ids[t] * size;
      const bool padding = g_.padding >= 0 && ids[t] == g_.padding;
      const float* place = positions_ + (padding ? g_.padding : ++position) * vectors(size);
      const float* type = types_ + (types ? types[t] : 0) * vectors(size);
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t bits = std::uint32_t(word[i]) << 16;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        row[i] = number + type[i] + place[i];
      }
      std::fill(row + size, row + vectors(size), 0.0f);
      qbert::normalize(row, int(size), norm_[0], norm_[1], float(g_.epsilon));
      quantized_.put(t, row, int(size), rest_);
    }
    if (!project_.empty()) {
      project_[0](quantized_, tokens,
                  [this](int row, int column, Floats values) { store(x_ + row * stride_ + column, values); });
      quantize(quantized_, x_, stride_, tokens, int(g_.hidden));
    }
  }

  // `quantized_` has the rows of x_ before and after.
  void run_layer(const Layer& layer, int tokens, int needed) {
    const Linear* projections[] = {&layer.query, &layer.key, &layer.value};
    for (int i = 0; i < 3; ++i) {
      (*projections[i])(quantized_, i == 0 ? needed : tokens, [this, i](int row, int column, Floats values) {
        AttentionDot::write(qkv_[i] + row * stride_ + column, values);
      });
    }
    Kernel::run(qkv_[0], qkv_[1], qkv_[2], stride_, tokens, needed, int(g_.heads), int(g_.hidden / g_.heads), scratch_,
                context_, stride_);
    const int hidden = int(g_.hidden), wide = int(g_.intermediate);
    const auto add = [this](int token, int column, Floats values) {
      float* to = x_ + token * stride_ + column;
      store(to, load<Floats>(to) + values);
    };
    quantize(quantized_, context_, stride_, needed, hidden);
    layer.output(quantized_, needed, add);
    normalize(needed, layer.attention_weight, layer.attention_bias);
    switch (g_.activation) {
      case kGelu: raise<kGelu>(layer.up, needed); break;
      case kGeluTanh: raise<kGeluTanh>(layer.up, needed); break;
      default: raise<kRelu>(layer.up, needed);
    }
    quantize(wide_quantized_, wide_, wide_stride_, needed, wide);
    layer.down(wide_quantized_, needed, add);
    normalize(needed, layer.weight, layer.bias);
  }

  template <Activation activation>
  void raise(const Linear& up, int tokens) {
    up(quantized_, tokens, [this](int token, int column, Floats values) {
      store(wide_ + token * wide_stride_ + column, activate<activation>(values));
    });
  }

  // Normalize the first `tokens` rows of x_, and quantize them.
  void normalize(int tokens, const float* weight, const float* bias) {
    for (int t = 0; t < tokens; ++t) {
      float* row = x_ + t * stride_;
      qbert::normalize(row, int(g_.hidden), weight, bias, float(g_.epsilon));
      quantized_.put(t, row, int(g_.hidden), rest_);
    }
  }

  void quantize(const Quantized& to, const float* rows, std::size_t stride, int tokens, int count) const {
    for (int t = 0; t < tokens; ++t) to.put(t, rows + t * stride, count, rest_);
  }

  // Two small products of one row, in fp32.
  void classify(float* logits) const {
    std::vector<float> hidden(g_.hidden);
    for (std::int64_t n = 0; n < g_.hidden; ++n) {
      const float value = dense_[1][n] + dot(x_, dense_[0] + n * vectors(g_.hidden), g_.hidden);
      switch (g_.head_activation) {
        case kHeadTanh: hidden[n] = std::tanh(value); break;
        case kHeadGelu: hidden[n] = value * 0.5f * std::erfc(-value * 0.70710678f); break;
        default: hidden[n] = std::fmax(value, 0.0f);
      }
    }
    hidden.resize(vectors(g_.hidden));
    for (std::int64_t n = 0; n < g_.labels; ++n) {
      logits[n] = labels_[1][n] + dot(hidden.data(), labels_[0] + n * vectors(g_.hidden), g_.hidden);
    }
  }

  static float dot(const float* a, const float* b, std::int64_t count) {
    Floats products{};
    for (std::int64_t i = 0; i < count; i += kLanes) products += load<Floats>(a + i) * load<Floats>(b + i);
    return across(products, sum);
  }

  static std::size_t vectors(std::size_t size) { return round_up(size, kLanes); }

  // `count` rows of `size` numbers, each followed by zeros up to a whole vector.
  const float* copied(const void* from, std::size_t count, std::size_t size) {
    auto* to = arena_.take<float>(count * vectors(size));
    for (std::size_t row = 0; row < count; ++row) {
      std::memcpy(to + row * vectors(size), static_cast<const float*>(from) + row * size, size * sizeof(float));
    }
    return to;
  }

  Linear linear(const void* const* tensors, std::int64_t outputs, std::int64_t inputs, float factor = 1) {
    return {arena_, static_cast<const std::int8_t*>(tensors[0]), static_cast<const float*>(tensors[1]),
            static_cast<const float*>(tensors[2]), int(outputs), int(inputs), factor};
  }

  Quantized quantized(std::size_t rows, std::size_t size) {
    // Not a multiple of 4096 bytes: all rows of a tile would compete for the same lines of the first cache.
    const std::size_t stride = round_up(size, 64) + 64;
    ++rows;  // what is left over of the first
    return {arena_.take<std::uint8_t>(rows * stride), stride, arena_.take<float>(rows), arena_.take<float>(rows)};
  }

  Geometry g_;
  Arena arena_;
  std::size_t stride_, wide_stride_;
  const std::uint16_t* words_ = nullptr;  // bf16
  const float *positions_ = nullptr, *types_ = nullptr;
  const float *norm_[2] = {}, *dense_[2] = {}, *labels_[2] = {};
  std::vector<Linear> project_;  // one where embeddings are narrower than the layers
  std::vector<Layer> layers_;
  float *x_, *context_, *wide_, *rest_;
  Kernel::Element* qkv_[3];
  Quantized quantized_, wide_quantized_;
  Kernel::Scratch scratch_;
};

}  // namespace qbert
