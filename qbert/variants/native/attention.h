// Attention of one layer: softmax(Q K^T) V for each head, in bf16 where the processor has it and fp32 where not.
//
// Both products are the kernel's (product.h, tiles.h). For Q K^T the columns are keys, packed like the rows of a weight. For
// P V the columns are the head's dimensions and the depth is the tokens, so a dword of bf16 holds one dimension of two
// tokens. A block of queries goes through scores, softmax and context while it is in the L1 cache. The scales of Q contain
// log2(e) and 1/sqrt(head size) (encoder.h), so softmax takes powers of two of the scores; the context is multiplied by
// 1/sum.
#pragma once

#include "activation.h"
#include "memory.h"
#include "rows.h"

namespace qbert {

template <class Product>
class Attention {
 public:
  using Dot = typename Product::Dot;
  using Element = typename Dot::Element;
  static constexpr int kQueries = std::max(Product::kRows, kBlockRows);  // at once

  Attention(Arena& arena, int tokens, int head_size)
      : keys_(arena.allocate<std::uint32_t>(keys(tokens, head_size).size())),
        values_(arena.allocate<std::uint32_t>(values(tokens, head_size).size())),
        scores_(arena.allocate<float>(kQueries * row_size(tokens))),
        probabilities_(arena.allocate<Element>(kQueries * row_size(tokens))),
        inverse_sums_(arena.allocate<float>(kQueries)),
        scratch_(arena.allocate<std::int32_t>(Product::scratch_size(kQueries))) {}

  // Elements of a row of Q, K or V: the last vector that is written, and the last bytes that are read, end within it.
  static std::size_t row_elements(int size) {
    return round_up(size, Product::kColumns) + std::max<std::size_t>(kLanes, Product::kDepth / sizeof(Element));
  }

  // Write the context of the first `queries` tokens; rows of Q, K and V are `stride` elements apart.
  void run(const Element* q, const Element* k, const Element* v, std::size_t stride, int tokens, int queries, int heads,
           int head_size, Between* context, std::size_t context_stride) const {
    const Layout keys = Attention::keys(tokens, head_size), values = Attention::values(tokens, head_size);
    const std::size_t row = row_size(tokens);
    for (int head = 0; head < heads; ++head) {
      const std::size_t first = std::size_t(head) * head_size;
      pack(k + first, stride * sizeof(Element), head_size * sizeof(Element), keys, keys_);
      pack_values(v + first, stride, tokens, values);
      for (int query = 0; query < queries; query += kQueries) {
        const int count = std::min(kQueries, queries - query);
        Product::run(q + query * stride + first, stride * sizeof(Element), count, keys_, keys, Scores{scores_, row},
                     scratch_);
        int r = 0;
        for (; r + 4 <= count; r += 4) softmax<4>(r, tokens, row);
        for (; r < count; ++r) softmax<1>(r, tokens, row);
        // A head writes whole vectors: what goes into the next head's columns, the next head overwrites.
        Product::run(probabilities_, row * sizeof(Element), count, values_, values,
                     Context{context + query * context_stride + first, context_stride, inverse_sums_}, scratch_);
      }
    }
  }

 private:
  using Layout = typename Product::Layout;

  static Layout keys(int tokens, int head_size) { return {tokens, (head_size + Dot::kGroup - 1) / Dot::kGroup}; }
  static Layout values(int tokens, int head_size) { return {head_size, (tokens + Dot::kGroup - 1) / Dot::kGroup}; }
  static std::size_t row_size(int tokens) { return round_up(tokens, 32) + 32; }  // whole lines of the cache

  struct Scores {
    static constexpr bool kStores = true;
    float* to;
    std::size_t stride;

    template <std::size_t N>
    auto at(int column) const {
      return [=, *this](int row, int r, const Several<Floats, N>& sums) {
        store_several(to + (row + r) * stride + column, sums);
      };
    }
  };

  struct Context {
    static constexpr bool kStores = false;
    Between* to;
    std::size_t stride;
    const float* inverse_sums;

    template <std::size_t N>
    auto at(int column) const {
      return [=, *this](int row, int r, const Several<Floats, N>& sums) {
        const float inverse = inverse_sums[row + r];
        store_between(to + (row + r) * stride + column, each([=](Floats sum) { return sum * inverse; }, sums));
      };
    }
  };

  // Write 2^(score - maximum) of rows from `row` on, with zeros after the last, and 1 / the sum of each row.
  template <int Rows>
  void softmax(int row, int tokens, std::size_t stride) const {
    constexpr std::size_t kVectors = Product::Powers::kVectors;
    constexpr int kStep = int(kVectors) * kLanes;
    float* scores = scores_ + row * stride;
    Element* to = probabilities_ + row * stride;
    const int whole = int(round_up(tokens, kStep));
    Floats maxima[Rows], totals[Rows] = {};
    float greatest[Rows];
    for (int r = 0; r < Rows; ++r) {
      for (int i = tokens; i < whole; ++i) scores[r * stride + i] = kLeast;
      maxima[r] = load<Floats>(scores + r * stride);
    }
    for (int i = kLanes; i < whole; i += kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) maxima[r] = maximum(maxima[r], load<Floats>(scores + r * stride + i));
    }
    for (int r = 0; r < Rows; ++r) greatest[r] = reduce(maxima[r], maximum);
    for (int i = 0; i < whole; i += kStep) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        Product::Powers::write(to + r * stride + i, load_several<Floats, kVectors>(scores + r * stride + i), greatest[r],
                               totals[r]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      inverse_sums_[row + r] = 1 / reduce(totals[r], sum);
      std::fill(to + r * stride + tokens, to + r * stride + round_up(tokens, 32), Element{});
    }
  }

  // Pack V with dimensions as columns and tokens along the depth.
  void pack_values(const Element* v, std::size_t stride, int tokens, const Layout& panels) const {
    for (int panel = 0; panel < panels.count; ++panel) {
      for (int vector = 0; vector < panels.width(panel); ++vector) {
        const int start = (panels.first(panel) + vector) * kLanes;
        const int columns = std::max(0, std::min(kLanes, panels.columns - start));
        for (int step = 0; step < panels.depth; ++step) {
          UInts dwords{};
          for (int i = 0; i < Dot::kGroup && step * Dot::kGroup + i < tokens; ++i) {
            dwords |= widened(v + std::size_t(step * Dot::kGroup + i) * stride + start, columns) << (16 * i);
          }
          store(values_ + panels.offset(panel) + Layout::at(step, vector, panels.width(panel)), dwords);
        }
      }
    }
  }

  // The first `count` elements of a vector as dwords, and zeros.
  static UInts widened(const Element* from, int count) {
    using Bits = std::conditional_t<Dot::kGroup == 1, std::uint32_t, std::uint16_t>;
    using Vector [[gnu::vector_size(kLanes * sizeof(Bits))]] = Bits;
    Vector elements{};
    if (count == kLanes) {
      elements = load<Vector>(from);
    } else {
      std::memcpy(&elements, from, count * sizeof(Element));
    }
    return __builtin_convertvector(elements, UInts);
  }

  static constexpr float kLeast = -1e38f;
  std::uint32_t *keys_, *values_;
  float* scores_;
  Element* probabilities_;
  float* inverse_sums_;
  std::int32_t* scratch_;
};

}  // namespace qbert
