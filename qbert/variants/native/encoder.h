// A BERT encoder with a classification head: token ids in, logits out, one text or several in a call, on one thread.
//
// Every layer's six products are int8 or kept in float (linear.h); attention and residual sums are not quantized. Only real tokens are computed, so
// there is no mask. All rows go through one product before the next: in blocks of 64 rows, activations would stay in the L2
// cache, but weights would be read once for each block, which took 4 % longer.
//
// The head reads the first token alone. So the last layer computes only what that token depends on (x), with the same result:
//
//                                            token 0    1    2   ...
//     key, value                                   x      x    x    x
//     query, attention, output, up, down           x      .    .    .
//
// The rows of several texts go through each product together, without padding, so weights are read once for all of them. No
// row's numbers depend on another text: the logits are those of one text at a time, to the bit.
#pragma once

#include <optional>
#include <vector>

namespace qbert {
using Kernel = QBERT_KERNEL;
}

#include "attention.h"
#include "linear.h"
#include "memory.h"
#include "rows.h"

namespace qbert {

// The arrays of pointers that Python passes, in the order of Geometry.groups in encoder.py.
struct EmbeddingTensors {
  const std::uint16_t* words;  // bf16
  const float *positions, *types, *norm_weight, *norm_bias;
  LinearTensors projection;  // absent where embeddings are as wide as the layers
};

struct LayerTensors {
  LinearTensors query, key, value, output, up, down;
  const float *attention_norm_weight, *attention_norm_bias, *norm_weight, *norm_bias;
};

struct HeadTensors {
  const float *dense_weight, *dense_bias, *labels_weight, *labels_bias;
};

// Filled by Python's ctypes: the fields are in the order of Geometry in encoder.py.
struct Geometry {
  std::int64_t vocabulary, embedding, types, positions, hidden, heads, layers, intermediate, labels;
  std::int64_t activation, head_activation;
  std::int64_t padding;  // padding's id and position in RoBERTa, where text has the positions after it; else -1
  double epsilon;
};

constexpr std::int64_t kMostTokens = 1 << 20;  // in a call

enum HeadActivation { kHeadTanh, kHeadGelu, kHeadRelu };

class Encoder {
 public:
  // Weights are packed by the setters or, where they are `mapped`, taken from there.
  Encoder(const Geometry& geometry, const void* mapped, std::size_t size)
      : geometry_(geometry),
        weights_(mapped, size),
        stride_(row_numbers(geometry.hidden)),
        qkv_stride_(Attending::row_elements(int(geometry.hidden))),
        wide_stride_(row_numbers(geometry.intermediate)) {}

  // The setters copy or pack the tensors, which may be freed afterwards. Where weights are mapped, a pointer tells only whether
  // there is such a tensor.
  void set_embeddings(const EmbeddingTensors* tensors) {
    const std::size_t size = geometry_.embedding;
    const std::size_t count = geometry_.vocabulary * size;
    words_ = weights_.make<std::uint16_t>(
        count, [&](std::uint16_t* words) { std::memcpy(words, tensors->words, count * sizeof(std::uint16_t)); });
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
    layers_.push_back({{linear(tensors->query, h, h, factor), linear(tensors->key, h, h), linear(tensors->value, h, h),
                        linear(tensors->output, h, h), linear(tensors->up, wide, h), linear(tensors->down, h, wide)},
                       padded_copy(tensors->attention_norm_weight, 1, h), padded_copy(tensors->attention_norm_bias, 1, h),
                       padded_copy(tensors->norm_weight, 1, h), padded_copy(tensors->norm_bias, 1, h)});
  }

  void set_head(const HeadTensors* tensors) {
    dense_[kWeight] = padded_copy(tensors->dense_weight, geometry_.hidden, geometry_.hidden);
    dense_[kBias] = padded_copy(tensors->dense_bias, 1, geometry_.hidden);
    labels_[kWeight] = padded_copy(tensors->labels_weight, geometry_.labels, geometry_.hidden);
    labels_[kBias] = padded_copy(tensors->labels_bias, 1, geometry_.labels);
  }

  const Weights& weights() const { return weights_; }

  // Run the product of that number in LayerTensors in float, or in int8, from now on; of layer -1, the projection of
  // embeddings. Returns whether it has that precision.
  bool keep(std::int64_t layer, std::int64_t product, bool keeps) {
    if (layer < 0) return !projection_.empty() && projection_[0].keep(keeps);
    if (layer >= std::int64_t(layers_.size()) || product < 0 || product >= kProducts) return false;
    return layers_[layer].products[product].keep(keeps);
  }

  // Whether `run` may be called: all weights are set, and lengths and ids are within the sizes of the encoder.
  bool accepts(const std::int64_t* ids, const std::int64_t* types, const std::int64_t* lengths, std::int64_t texts) const {
    if (std::int64_t(layers_.size()) != geometry_.layers || !labels_[kWeight]) return false;
    std::int64_t tokens = 0;
    for (std::int64_t text = 0; text < texts; ++text) {
      if (lengths[text] < 1 || lengths[text] > geometry_.positions) return false;
      tokens += lengths[text];
    }
    if (texts < 1 || tokens > kMostTokens) return false;
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (ids[i] < 0 || ids[i] >= geometry_.vocabulary) return false;
      if (types && (types[i] < 0 || types[i] >= geometry_.types)) return false;
    }
    return true;
  }

  // Write the logits of `texts` texts, whose tokens follow one another; each has its number of them in `lengths`.
  void run(const std::int64_t* ids, const std::int64_t* types, const std::int64_t* lengths, int texts, float* logits) {
    int tokens = 0;
    for (int text = 0; text < texts; ++text) tokens += int(lengths[text]);
    reserve(tokens, texts);
    texts_.count = texts;
    [[maybe_unused]] const Kernel::Session session;
    for (int text = 0, rest = texts; text < texts; rest += int(lengths[text++]) - 1) {
      embed(ids, types, text, rest, int(lengths[text]));
      ids += lengths[text], types += types ? lengths[text] : 0;
    }
    project_embeddings(tokens);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      const bool last = layer + 1 == layers_.size();
      run_layer(layers_[layer], lengths, tokens, last ? texts : tokens, last ? Wanted{} : wanted_by(layers_[layer + 1]));
    }
    for (int text = 0; text < texts; ++text) classify(hidden_ + text * stride_, logits + text * geometry_.labels);
  }

 private:
  using Attending = Attention<Kernel::Attention>;

  enum { kWeight, kBias };

  enum { kQuery, kKey, kValue, kOutput, kUp, kDown, kProducts };

  struct Layer {
    Linear products[kProducts];
    const float *attention_norm_weight, *attention_norm_bias, *norm_weight, *norm_bias;
  };

  // Make room for the work on `texts` with `tokens` in all, in steps: few texts need room for as many as there are positions.
  void reserve(int tokens, int texts) {
    if (tokens <= capacity_ && texts <= most_texts_) return;
    const std::size_t positions = geometry_.positions;
    const std::size_t whole = texts == 1 ? std::min<std::size_t>(round_up(tokens, 64), positions) : round_up(tokens, 64);
    const std::size_t capacity = std::max(whole, std::size_t(capacity_));
    if (texts > most_texts_) most_texts_ = int(round_up(texts, 8));
    capacity_ = 0;  // where memory ends below
    Arena& arena = arena_.emplace();
    attention_.emplace(arena, int(std::min(capacity, positions)), int(geometry_.hidden / geometry_.heads));
    const std::size_t widest = std::max({geometry_.hidden, geometry_.intermediate, geometry_.embedding});
    constexpr std::size_t kRows = std::max(Int8Linear::Product::kRows, KeptLinear::Product::kRows);
    const std::size_t rows = round_up(capacity + most_texts_ - 1, kRows) + 1;
    texts_.errors_stride = row_numbers(widest);
    texts_.errors = arena.allocate<float>(most_texts_ * texts_.errors_stride);
    if (most_texts_ > 1) {
      const std::size_t longest = round_up(std::min(capacity, positions), kRows) + 1;
      for (auto*& qkv : of_text_) qkv = arena.allocate<typename Attending::Element>(longest * qkv_stride_);
      context_of_text_ = arena.allocate<Between>(longest * stride_);
    }
    hidden_ = arena.allocate<float>(rows * stride_);
    added_ = arena.allocate<Between>(rows * stride_);
    context_ = arena.allocate<Between>(rows * stride_);
    for (auto*& qkv : qkv_) qkv = arena.allocate<typename Attending::Element>(rows * qkv_stride_);
    wide_ = arena.allocate<Between>(rows * wide_stride_);
    row_ = arena.allocate<float>(row_numbers(widest));
    error_ = arena.allocate<float>(row_numbers(widest));
    rows_.bytes = quantized(rows, std::max(geometry_.hidden, geometry_.embedding));
    wide_rows_.bytes = quantized(rows, geometry_.intermediate);
    rows_.numbers = wide_rows_.numbers = {arena.allocate<KeptLinear::Element>(rows * row_numbers(widest)),
                                          row_numbers(widest)};  // used by turns; not touched if all products are int8
    scratch_ = arena.allocate<std::int32_t>(
        std::max(Int8Linear::Product::scratch_size(rows), KeptLinear::Product::scratch_size(rows)));
    capacity_ = int(capacity);
  }

  // What a layer's first products read.
  static Wanted wanted_by(const Layer& layer) {
    Wanted wanted;
    for (int product : {kQuery, kKey, kValue}) layer.products[product].add_to(wanted);
    return wanted;
  }

  static Wanted wanted_by(const Linear& linear) {
    Wanted wanted;
    linear.add_to(wanted);
    return wanted;
  }

  // Embed a text: its first token in row `first`, the others in the rows from `rest` on.
  void embed(const std::int64_t* ids, const std::int64_t* types, int first, int rest, int tokens) {
    const std::size_t size = geometry_.embedding;
    const Wanted wanted = projection_.empty() ? wanted_by(layers_[0]) : wanted_by(projection_[0]);
    std::int64_t position = geometry_.padding;
    for (int t = 0; t < tokens; ++t) {
      const int place = t == 0 ? first : rest + t - 1;
      float* row = projection_.empty() ? hidden_ + place * stride_ : row_;
      const std::uint16_t* word = words_ + ids[t] * size;
      const bool padding = geometry_.padding >= 0 && ids[t] == geometry_.padding;
      const float* position_row = positions_ + (padding ? geometry_.padding : ++position) * padded(size);
      const float* type = types_ + (types ? types[t] : 0) * padded(size);
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t bits = std::uint32_t(word[i]) << 16;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        row[i] = number + type[i] + position_row[i];
      }
      std::fill(row + size, row + padded(size), 0.0f);
      const auto range = qbert::normalize<1>(row, 0, nullptr, 0, int(size), norm_[kWeight], norm_[kBias], epsilon());
      if (wanted.bytes) rows_.bytes.quantize(place, row, 0, int(size), range);
      if (wanted.numbers) rows_.numbers.convert<1>(place, row, 0, int(size));
    }
  }

  void project_embeddings(int tokens) {
    if (projection_.empty()) return;
    projection_[0](rows_, tokens, scratch_, [this](int token, int column, const auto& values) {
      store_several(hidden_ + token * stride_ + column, values);
    });
    make(wanted_by(layers_[0]), rows_, hidden_, stride_, tokens, int(geometry_.hidden));
  }

  // Compute the layer's output for the first `queries` rows: all tokens, or the first of each text. `rows_` holds the rows of
  // hidden_, before as this layer wants them and after as the next does.
  void run_layer(const Layer& layer, const std::int64_t* lengths, int tokens, int queries, Wanted by_next) {
    const Linear(&products)[kProducts] = layer.products;
    for (int i : {kQuery, kKey, kValue}) {
      const auto write = [to = qkv_[i], stride = qkv_stride_](int token, int column, const auto& values) {
        Attending::Dot::write(to + token * stride + column, values);
      };
      products[i](rows_, i == kQuery ? queries : tokens, scratch_, write);
    }
    const int hidden = int(geometry_.hidden), wide = int(geometry_.intermediate), heads = int(geometry_.heads);
    if (texts_.count == 1) {
      attention_->run(qkv_[0], qkv_[1], qkv_[2], qkv_stride_, tokens, queries, heads, hidden / heads, context_, stride_);
    } else {
      attend(lengths, queries < tokens, heads);
    }
    const auto add = [to = added_, stride = stride_](int token, int column, const auto& values) {
      store_between(to + token * stride + column, each(held, values));
    };
    make(wanted_by(products[kOutput]), rows_, context_, stride_, queries, hidden);
    products[kOutput](rows_, queries, scratch_, add);
    normalize(queries, layer.attention_norm_weight, layer.attention_norm_bias, wanted_by(products[kUp]));
    switch (geometry_.activation) {
      case kGelu: project_up<kGelu>(products[kUp], queries); break;
      case kGeluTanh: project_up<kGeluTanh>(products[kUp], queries); break;
      default: project_up<kRelu>(products[kUp], queries);
    }
    make(wanted_by(products[kDown]), wide_rows_, wide_, wide_stride_, queries, wide);
    products[kDown](wide_rows_, queries, scratch_, add);
    normalize(queries, layer.norm_weight, layer.norm_bias, by_next);
  }

  // The attention of each of several texts: its rows are brought together, and those of its context back to their places.
  void attend(const std::int64_t* lengths, bool firsts, int heads) {
    const int head_size = int(geometry_.hidden) / heads;
    for (int text = 0, rest = texts_.count; text < texts_.count; rest += int(lengths[text++]) - 1) {
      const int others = int(lengths[text]) - 1;
      for (int i = 0; i < 3; ++i) {
        std::copy_n(qkv_[i] + text * qkv_stride_, qkv_stride_, of_text_[i]);
        if (i > 0 || !firsts) std::copy_n(qkv_[i] + rest * qkv_stride_, others * qkv_stride_, of_text_[i] + qkv_stride_);
      }
      attention_->run(of_text_[0], of_text_[1], of_text_[2], qkv_stride_, others + 1, firsts ? 1 : others + 1, heads,
                      head_size, context_of_text_, stride_);
      std::copy_n(context_of_text_, stride_, context_ + text * stride_);
      if (!firsts) std::copy_n(context_of_text_ + stride_, others * stride_, context_ + rest * stride_);
    }
  }

  template <Activation activation>
  void project_up(const Linear& up, int tokens) {
    up(rows_, tokens, scratch_, [to = wide_, stride = wide_stride_](int token, int column, const auto& values) {
      store_between(to + token * stride + column, each(activate<activation>, values));
    });
  }

  // Add the first `tokens` rows of added_ to hidden_, normalize the sums, and make the rows that are `wanted` of them.
  void normalize(int tokens, const float* weight, const float* bias, Wanted wanted) {
    const int hidden = int(geometry_.hidden);
    by_rows(tokens, [=](int t, auto rows) {
      float* row = hidden_ + t * stride_;
      const auto range = qbert::normalize<rows()>(row, stride_, added_ + t * stride_, stride_, hidden, weight, bias,
                                                  epsilon());
      if (wanted.bytes) rows_.bytes.quantize(t, row, stride_, hidden, range);
      if (wanted.numbers) rows_.numbers.convert<rows()>(t, row, stride_, hidden);
    });
  }

  template <class Number>
  void make(Wanted wanted, const Rows& to, Number* from, std::size_t stride, int tokens, int count) const {
    if (wanted.bytes) by_rows(tokens, [&](int t, auto rows) { to.bytes.quantize<rows()>(t, from + t * stride, stride, count); });
    if (wanted.numbers) by_rows(tokens, [&](int t, auto rows) { to.numbers.convert<rows()>(t, from + t * stride, stride, count); });
  }

  // Call `work(token, rows)` for four tokens at a time, then for one at a time.
  template <class Work>
  static void by_rows(int tokens, const Work& work) {
    int t = 0;
    for (; t + 4 <= tokens; t += 4) work(t, std::integral_constant<int, 4>{});
    for (; t < tokens; ++t) work(t, std::integral_constant<int, 1>{});
  }

  float epsilon() const { return float(geometry_.epsilon); }

  // Two products of a text's first row, in fp32.
  void classify(const float* first, float* logits) const {
    std::vector<float> hidden(geometry_.hidden);
    for (std::int64_t n = 0; n < geometry_.hidden; ++n) {
      const float value = dense_[kBias][n] + dot(first, dense_[kWeight] + n * padded(geometry_.hidden), geometry_.hidden);
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
    return weights_.make<float>(count * padded(size), [&](float* to) {
      for (std::size_t row = 0; row < count; ++row) {
        std::memcpy(to + row * padded(size), rows + row * size, size * sizeof(float));
      }
    });
  }

  Linear linear(const LinearTensors& tensors, std::int64_t outputs, std::int64_t inputs, float factor = 1) {
    return {weights_, tensors, int(outputs), int(inputs), factor};
  }

  Quantized quantized(std::size_t rows, std::size_t size) {
    // The stride is no multiple of 4096 bytes: else all rows of a tile would compete for the same lines of the L1 cache.
    const std::size_t stride = round_up(size, 64) + 64;
    return {arena_->allocate<std::uint8_t>(rows * stride), stride, arena_->allocate<float>(rows),
            arena_->allocate<float>(rows), error_, &texts_};
  }

  Geometry geometry_;
  Weights weights_;
  std::size_t stride_, qkv_stride_, wide_stride_;
  const std::uint16_t* words_ = nullptr;  // bf16
  const float *positions_ = nullptr, *types_ = nullptr;
  const float *norm_[2] = {}, *dense_[2] = {}, *labels_[2] = {};  // at kWeight and kBias
  std::vector<Linear> projection_;  // of embeddings to the layers' width; empty where they have it
  std::vector<Layer> layers_;
  Texts texts_;
  int capacity_ = 0, most_texts_ = 1;  // tokens and texts that there is room for in what follows
  std::optional<Arena> arena_;
  std::optional<Attending> attention_;
  float *hidden_, *row_, *error_;  // row_: an embedding to be projected
  Between *added_, *context_, *wide_;  // added_: what a product adds to hidden_; wide_: after the product `up`
  Attending::Element* qkv_[3];  // queries, keys, values
  Attending::Element* of_text_[3];  // the same of one of several texts, and its context
  Between* context_of_text_;
  Rows rows_, wide_rows_;  // what products read, of `hidden` and of `intermediate` numbers
  std::int32_t* scratch_;
};

}  // namespace qbert
