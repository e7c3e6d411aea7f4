// A BERT encoder with a classification head: token ids in, logits out, one text at a time, on one thread.
//
// Every layer's six products are int8; attention and residual sums are not quantized. Only real tokens are computed, so
// there is no mask. All rows go through one product before the next: in blocks of 64 rows, activations would stay in the L2
// cache, but weights would be read once for each block, which took 4 % longer.
//
// The head reads the first token alone. So the last layer computes only what that token depends on (x), with the same result:
//
//                                            token 0    1    2   ...
//     key, value                                   x      x    x    x
//     query, attention, output, up, down           x      .    .    .
#pragma once

#include <vector>

namespace qbert {
using Kernel = QBERT_KERNEL;
}

#include "attention.h"
#include "memory.h"
#include "rows.h"

namespace qbert {

// The arrays of pointers that Python passes, in the order of Geometry.groups in encoder.py.
struct MatrixTensors {
  const std::int8_t* weights;  // `outputs` by `inputs`
  const float *steps, *biases;
};

struct EmbeddingTensors {
  const std::uint16_t* words;  // bf16
  const float *positions, *types, *norm_weight, *norm_bias;
  MatrixTensors projection;  // absent where embeddings are as wide as the layers
};

struct LayerTensors {
  MatrixTensors query, key, value, output, up, down;
  const float *attention_norm_weight, *attention_norm_bias, *norm_weight, *norm_bias;
};

struct HeadTensors {
  const float *dense_weight, *dense_bias, *labels_weight, *labels_bias;
};

// A product with int8 weights: a step, a bias and the scaled sum of the weights (rows.h) for each output.
struct Linear {
  using Product = Kernel::Int8;
  Product::Layout panels;
  const std::uint32_t* packed;
  const float *step, *sums, *bias;

  // Pack `outputs` by `inputs` weights; the outputs are multiplied by `factor`.
  Linear(Arena& arena, const std::int8_t* weights, const float* steps, const float* biases, int outputs, int inputs,
         float factor = 1)
      : panels(outputs, int(round_up(inputs, 4)) / 4) {
    auto* to = arena.allocate<std::uint32_t>(panels.size());
    pack(weights, inputs, inputs, panels, to);
    packed = to;
    const std::size_t whole = round_up(outputs, Product::kColumns);
    auto* numbers = arena.allocate<float>(3 * whole);
    for (int n = 0; n < outputs; ++n) {
      long sum = 0;
      for (int k = 0; k < inputs; ++k) sum += weights[std::size_t(n) * inputs + k];
      numbers[n] = steps[n] * factor;
      numbers[whole + n] = float(sum * double(steps[n]) * factor);
      numbers[2 * whole + n] = biases[n] * factor;
    }
    step = numbers, sums = numbers + whole, bias = numbers + 2 * whole;
  }

  template <class Write>
  struct Epilogue {
    static constexpr bool kStores = false;
    const Linear& linear;
    const Quantized& rows;
    Write write;

    template <std::size_t N>
    auto at(int column) const {
      using Vectors = Several<Floats, N>;
      const auto step = load_several<Floats, N>(linear.step + column), sums = load_several<Floats, N>(linear.sums + column),
                 bias = load_several<Floats, N>(linear.bias + column);
      return [=, error = Vectors{}](int first, int r, const Several<Ints, N>& sum) mutable {
        const int row = first + r;
        const float row_step = rows.step[row], row_offset = rows.offset[row];
        Vectors values = each(
            [=](Ints sum, Floats step, Floats sums, Floats bias) {
              return __builtin_convertvector(sum, Floats) * (step * row_step) + (sums * row_offset + bias);
            },
            sum, step, sums, bias);
        if (r < 2 && row < 2) {  // the rounding error of the first token, and that token
          if (row == 0) {
            error = each([](Floats value, Floats bias) { return value - bias; }, values, bias);
            return;
          }
          values = each([](Floats value, Floats error) { return value + error; }, values, error);
        }
        write(row - 1, column, values);
      };
    }
  };

  // Call `write(token, column, values)` with some vectors at a time of the product of `count` tokens; zeros follow the last
  // column.
  template <class Write>
  void operator()(const Quantized& rows, int count, std::int32_t* scratch, const Write& write) const {
    Product::run(rows.bytes, rows.stride, count + 1, packed, panels, Epilogue<Write>{*this, rows, write}, scratch);
  }
};

// Filled by Python's ctypes: the fields are in the order of Geometry in encoder.py.
struct Geometry {
  std::int64_t vocabulary, embedding, types, positions, hidden, heads, layers, intermediate, labels;
  std::int64_t activation, head_activation;
  std::int64_t padding;  // padding's id and position in RoBERTa, where text has the positions after it; else -1
  double epsilon;
};

enum HeadActivation { kHeadTanh, kHeadGelu, kHeadRelu };

class Encoder {
 public:
  explicit Encoder(const Geometry& geometry)
      : geometry_(geometry),
        attention_(arena_, int(geometry.positions), int(geometry.hidden / geometry.heads)) {
    const std::size_t widest = std::max({geometry_.hidden, geometry_.intermediate, geometry_.embedding});
    const std::size_t rows = round_up(geometry_.positions, Linear::Product::kRows) + 1;
    stride_ = row_numbers(geometry_.hidden);
    wide_stride_ = row_numbers(geometry_.intermediate);
    hidden_ = arena_.allocate<float>(rows * stride_);
    added_ = arena_.allocate<Half>(rows * stride_);
    context_ = arena_.allocate<Half>(rows * stride_);
    qkv_stride_ = Attending::row_elements(int(geometry_.hidden));
    for (auto*& qkv : qkv_) qkv = arena_.allocate<Attending::Element>(rows * qkv_stride_);
    wide_ = arena_.allocate<Half>(rows * wide_stride_);
    row_ = arena_.allocate<float>(row_numbers(widest));
    error_ = arena_.allocate<float>(row_numbers(widest));
    quantized_ = quantized(rows, std::max(geometry_.hidden, geometry_.embedding));
    quantized_wide_ = quantized(rows, geometry_.intermediate);
    scratch_ = arena_.allocate<std::int32_t>(Linear::Product::scratch_size(rows));
  }

  // The setters copy or pack the tensors, which may be freed afterwards.
  void set_embeddings(const EmbeddingTensors* tensors) {
    const std::size_t size = geometry_.embedding;
    auto* words = arena_.allocate<std::uint16_t>(geometry_.vocabulary * size);
    std::memcpy(words, tensors->words, geometry_.vocabulary * size * sizeof(std::uint16_t));
    words_ = words;
    positions_ = padded_copy(tensors->positions, geometry_.positions + geometry_.padding + 1, size);
    types_ = padded_copy(tensors->types, geometry_.types, size);
    norm_[kWeight] = padded_copy(tensors->norm_weight, 1, size), norm_[kBias] = padded_copy(tensors->norm_bias, 1, size);
    if (geometry_.embedding != geometry_.hidden) {
      projection_.push_back(linear(tensors->projection, geometry_.hidden, geometry_.embedding));
    }
  }

  void add_layer(const LayerTensors* tensors) {
    const std::int64_t h = geometry_.hidden, wide = geometry_.intermediate;
    // Scores are exponents of two (attention.h).
    const float factor = float(1 / (std::log(2.0) * std::sqrt(double(h / geometry_.heads))));
    layers_.push_back({linear(tensors->query, h, h, factor), linear(tensors->key, h, h), linear(tensors->value, h, h),
                       linear(tensors->output, h, h), linear(tensors->up, wide, h), linear(tensors->down, h, wide),
                       padded_copy(tensors->attention_norm_weight, 1, h), padded_copy(tensors->attention_norm_bias, 1, h),
                       padded_copy(tensors->norm_weight, 1, h), padded_copy(tensors->norm_bias, 1, h)});
  }

  void set_head(const HeadTensors* tensors) {
    dense_[kWeight] = padded_copy(tensors->dense_weight, geometry_.hidden, geometry_.hidden);
    dense_[kBias] = padded_copy(tensors->dense_bias, 1, geometry_.hidden);
    labels_[kWeight] = padded_copy(tensors->labels_weight, geometry_.labels, geometry_.hidden);
    labels_[kBias] = padded_copy(tensors->labels_bias, 1, geometry_.labels);
  }

  // Whether `run` may be called: all weights are set, and length and ids are within the sizes of the encoder.
  bool accepts(const std::int64_t* ids, const std::int64_t* types, std::int64_t tokens) const {
    if (tokens < 1 || tokens > geometry_.positions) return false;
    if (std::int64_t(layers_.size()) != geometry_.layers || !labels_[kWeight]) return false;
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (ids[i] < 0 || ids[i] >= geometry_.vocabulary) return false;
      if (types && (types[i] < 0 || types[i] >= geometry_.types)) return false;
    }
    return true;
  }

  void run(const std::int64_t* ids, const std::int64_t* types, int tokens, float* logits) {
    [[maybe_unused]] const Kernel::Session session;
    embed(ids, types, tokens);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      run_layer(layers_[layer], tokens, layer + 1 == layers_.size() ? 1 : tokens);
    }
    classify(logits);
  }

 private:
  using Attending = Attention<Kernel::Attention>;

  enum { kWeight, kBias };

  struct Layer {
    Linear query, key, value, output, up, down;
    const float *attention_norm_weight, *attention_norm_bias, *norm_weight, *norm_bias;
  };

  void embed(const std::int64_t* ids, const std::int64_t* types, int tokens) {
    const std::size_t size = geometry_.embedding;
    std::int64_t position = geometry_.padding;
    for (int t = 0; t < tokens; ++t) {
      float* row = projection_.empty() ? hidden_ + t * stride_ : row_;
      const std::uint16_t* word = words_ + ids[t] * size;
      const bool padding = geometry_.padding >= 0 && ids[t] == geometry_.padding;
      const float* place = positions_ + (padding ? geometry_.padding : ++position) * padded(size);
      const float* type = types_ + (types ? types[t] : 0) * padded(size);
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t bits = std::uint32_t(word[i]) << 16;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        row[i] = number + type[i] + place[i];
      }
      std::fill(row + size, row + padded(size), 0.0f);
      const auto range = qbert::normalize<1>(row, 0, nullptr, 0, int(size), norm_[kWeight], norm_[kBias], epsilon());
      quantized_.quantize(t, row, 0, int(size), range);
    }
    if (!projection_.empty()) {
      projection_[0](quantized_, tokens, scratch_, [this](int row, int column, const auto& values) {
        store_several(hidden_ + row * stride_ + column, values);
      });
      quantize(quantized_, hidden_, stride_, tokens, int(geometry_.hidden));
    }
  }

  // Compute the layer's output for the first `queries` tokens. `quantized_` holds the rows of hidden_, before and after.
  void run_layer(const Layer& layer, int tokens, int queries) {
    const Linear* projections[] = {&layer.query, &layer.key, &layer.value};
    for (int i = 0; i < 3; ++i) {
      (*projections[i])(quantized_, i == 0 ? queries : tokens, scratch_, [this, i](int row, int column, const auto& values) {
        Attending::Dot::write(qkv_[i] + row * qkv_stride_ + column, values);
      });
    }
    const int hidden = int(geometry_.hidden), wide = int(geometry_.intermediate), heads = int(geometry_.heads);
    attention_.run(qkv_[0], qkv_[1], qkv_[2], qkv_stride_, tokens, queries, heads, hidden / heads, context_, stride_);
    const auto add = [this](int token, int column, const auto& values) {
      store_halves(added_ + token * stride_ + column, each(held, values));
    };
    quantize(quantized_, context_, stride_, queries, hidden);
    layer.output(quantized_, queries, scratch_, add);
    normalize(queries, layer.attention_norm_weight, layer.attention_norm_bias);
    switch (geometry_.activation) {
      case kGelu: project_up<kGelu>(layer.up, queries); break;
      case kGeluTanh: project_up<kGeluTanh>(layer.up, queries); break;
      default: project_up<kRelu>(layer.up, queries);
    }
    quantize(quantized_wide_, wide_, wide_stride_, queries, wide);
    layer.down(quantized_wide_, queries, scratch_, add);
    normalize(queries, layer.norm_weight, layer.norm_bias);
  }

  template <Activation activation>
  void project_up(const Linear& up, int tokens) {
    up(quantized_, tokens, scratch_, [this](int token, int column, const auto& values) {
      store_halves(wide_ + token * wide_stride_ + column, each(activate<activation>, values));
    });
  }

  // Add the first `tokens` rows of added_ to hidden_, normalize and quantize the sums.
  void normalize(int tokens, const float* weight, const float* bias) {
    const int hidden = int(geometry_.hidden);
    by_rows(tokens, [=, this](int t, auto rows) {
      float* row = hidden_ + t * stride_;
      const auto range = qbert::normalize<rows()>(row, stride_, added_ + t * stride_, stride_, hidden, weight, bias,
                                                  epsilon());
      quantized_.quantize(t, row, stride_, hidden, range);
    });
  }

  template <class Number>
  void quantize(const Quantized& to, Number* from, std::size_t stride, int tokens, int count) const {
    by_rows(tokens, [&](int t, auto rows) { to.quantize<rows()>(t, from + t * stride, stride, count); });
  }

  // Call `work(token, rows)` for four tokens at a time, then for one at a time.
  template <class Work>
  static void by_rows(int tokens, const Work& work) {
    int t = 0;
    for (; t + 4 <= tokens; t += 4) work(t, std::integral_constant<int, 4>{});
    for (; t < tokens; ++t) work(t, std::integral_constant<int, 1>{});
  }

  float epsilon() const { return float(geometry_.epsilon); }

  // Two products of the first token's row, in fp32.
  void classify(float* logits) const {
    std::vector<float> hidden(geometry_.hidden);
    for (std::int64_t n = 0; n < geometry_.hidden; ++n) {
      const float value = dense_[kBias][n] + dot(hidden_, dense_[kWeight] + n * padded(geometry_.hidden), geometry_.hidden);
      switch (geometry_.head_activation) {
        case kHeadTanh: hidden[n] = std::tanh(value); break;
        case kHeadGelu: hidden[n] = value * 0.5f * std::erfc(-value * 0.70710678f); break;
        default: hidden[n] = std::fmax(value, 0.0f);
      }
    }
    hidden.resize(padded(geometry_.hidden));
    for (std::int64_t n = 0; n < geometry_.labels; ++n) {
      logits[n] = labels_[kBias][n] + dot(hidden.data(), labels_[kWeight] + n * padded(geometry_.hidden), geometry_.hidden);
    }
  }

  static float dot(const float* a, const float* b, std::int64_t count) {
    Floats products{};
    for (std::int64_t i = 0; i < count; i += kLanes) products += load<Floats>(a + i) * load<Floats>(b + i);
    return reduce(products, sum);
  }

  static std::size_t padded(std::size_t size) { return round_up(size, kLanes); }

  // Numbers of a row that a product writes; it ends with a line of the cache, so that a column's rows differ in their lines.
  static std::size_t row_numbers(std::size_t size) { return round_up(size, 32) + 32; }

  // Copy `count` rows of `size` numbers, each followed by zeros up to a whole vector.
  const float* padded_copy(const float* rows, std::size_t count, std::size_t size) {
    auto* to = arena_.allocate<float>(count * padded(size));
    for (std::size_t row = 0; row < count; ++row) {
      std::memcpy(to + row * padded(size), rows + row * size, size * sizeof(float));
    }
    return to;
  }

  Linear linear(const MatrixTensors& tensors, std::int64_t outputs, std::int64_t inputs, float factor = 1) {
    return {arena_, tensors.weights, tensors.steps, tensors.biases, int(outputs), int(inputs), factor};
  }

  Quantized quantized(std::size_t rows, std::size_t size) {
    // The stride is no multiple of 4096 bytes: else all rows of a tile would compete for the same lines of the L1 cache.
    const std::size_t stride = round_up(size, 64) + 64;
    return {arena_.allocate<std::uint8_t>(rows * stride), stride, arena_.allocate<float>(rows),
            arena_.allocate<float>(rows), error_};
  }

  Geometry geometry_;
  Arena arena_;
  Attending attention_;
  std::size_t stride_, qkv_stride_, wide_stride_;
  const std::uint16_t* words_ = nullptr;  // bf16
  const float *positions_ = nullptr, *types_ = nullptr;
  const float *norm_[2] = {}, *dense_[2] = {}, *labels_[2] = {};  // at kWeight and kBias
  std::vector<Linear> projection_;  // of embeddings to the layers' width; empty where they have it
  std::vector<Layer> layers_;
  float *hidden_, *row_, *error_;  // row_: an embedding to be projected
  Half *added_, *context_, *wide_;  // added_: what a product adds to hidden_; wide_: after the product `up`
  Attending::Element* qkv_[3];  // queries, keys, values
  Quantized quantized_, quantized_wide_;
  std::int32_t* scratch_;
};

}  // namespace qbert
