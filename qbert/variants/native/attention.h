// Attention of one layer: softmax(Q K^T) V for each head, in bf16 where the processor has it and fp32 where not.
//
// Both products use product.h. For Q K^T the columns are keys, packed like the rows of a weight. For P V the columns are the
// head's dimensions and the depth is the tokens, so a dword of bf16 holds one dimension of two tokens. A block of
// kTileRows queries goes through scores, softmax and context while it is in the L1 cache. The scales of Q contain log2(e)
// and 1/sqrt(head size) (encoder.h), so softmax takes powers of two of the scores; the context is multiplied by 1/sum.
#pragma once

#include "activation.h"
#include "product.h"

namespace qbert {

template <class Dot>
class Attention {
 public:
  using Element = typename Dot::Element;

  // The last vector that is written to a row, and the last dword that is read, end within it.
  static std::size_t row_elements(int size) { return round_up(size, kLanes) + kLanes; }

  struct Scratch {
    std::uint32_t* keys;
    std::uint32_t* values;
    float* scores;           // kTileRows rows
    Element* probabilities;  // kTileRows rows
    float* inverse_sums;

    static std::size_t panels_size(int tokens, int head_size) {
      return round_up(tokens, kLanes) * round_up(head_size, kLanes);
    }
    static std::size_t row_size(int tokens) { return round_up(tokens, kLanes) + kLanes; }
  };

  // Write the context of the first `queries` tokens as rows of fp32; rows of Q, K and V are `stride` elements apart.
  static void run(const Element* q, const Element* k, const Element* v, std::size_t stride, int tokens, int queries,
                  int heads, int head_size, const Scratch& scratch, float* context, std::size_t context_stride) {
    const Panels keys(tokens, (head_size + Dot::kGroup - 1) / Dot::kGroup);
    const Panels values(head_size, (tokens + Dot::kGroup - 1) / Dot::kGroup);
    const std::size_t row = Scratch::row_size(tokens);
    for (int head = 0; head < heads; ++head) {
      const std::size_t first = std::size_t(head) * head_size;
      pack(k + first, stride * sizeof(Element), head_size * sizeof(Element), keys, scratch.keys);
      pack_values(v + first, stride, tokens, values, scratch.values);
      for (int query = 0; query < queries; query += kTileRows) {
        const int count = std::min(kTileRows, queries - query);
        product<Dot>(q + query * stride + first, stride * sizeof(Element), count, scratch.keys, keys,
                     Scores{scratch.scores, row});
        for (int r = 0; r < count; ++r) {
          scratch.inverse_sums[r] = softmax(scratch.scores + r * row, tokens, scratch.probabilities + r * row);
        }
        // A head writes whole vectors: what goes into the next head's columns, the next head overwrites.
        product<Dot>(scratch.probabilities, row * sizeof(Element), count, scratch.values, values,
                     Context{context + query * context_stride + first, context_stride, scratch.inverse_sums});
      }
    }
  }

 private:
  struct Scores {
    float* to;
    std::size_t stride;
    auto at(int column) const {
      return [=, *this](int row, int r, Floats sums) { store(to + (row + r) * stride + column, sums); };
    }
  };

  struct Context {
    float* to;
    std::size_t stride;
    const float* inverse_sums;
    auto at(int column) const {
      return [=, *this](int row, int r, Floats sums) {
        store(to + (row + r) * stride + column, sums * inverse_sums[row + r]);
      };
    }
  };

  // Write 2^(score - maximum) for `count` scores, and zeros up to a whole vector; return 1 / their sum.
  static float softmax(float* scores, int count, Element* probabilities) {
    const int whole = int(round_up(count, kLanes));
    for (int i = count; i < whole; ++i) scores[i] = -INFINITY;
    Floats maxima = load<Floats>(scores);
    for (int i = kLanes; i < whole; i += kLanes) maxima = maximum(maxima, load<Floats>(scores + i));
    const float greatest = reduce(maxima, maximum);
    Floats total{};
    for (int i = 0; i < whole; i += kLanes) {
      const Floats power = exp2(load<Floats>(scores + i) - greatest);
      total += power;
      Dot::write(probabilities + i, power);
    }
    for (int i = count; i < whole; ++i) probabilities[i] = 0;
    return 1 / reduce(total, sum);
  }

  // Pack V with dimensions as columns and tokens along the depth.
  static void pack_values(const Element* v, std::size_t stride, int tokens, const Panels& panels, std::uint32_t* packed) {
    for (int panel = 0; panel < panels.count; ++panel) {
      const int start = panels.first(panel) * kLanes, width = panels.width(panel) * kLanes;
      const int columns = std::min(width, panels.columns - start);
      std::uint32_t* to = packed + panels.offset(panel);
      for (int step = 0; step < panels.depth; ++step, to += width) {
        const Element* even = v + std::size_t(step) * Dot::kGroup * stride + start;
        if constexpr (Dot::kGroup == 1) {
          std::memcpy(to, even, columns * sizeof(float));
        } else {
          const Element* odd = even + stride;
          if (2 * step + 1 < tokens) {
            for (int lane = 0; lane < columns; ++lane) to[lane] = even[lane] | std::uint32_t(odd[lane]) << 16;
          } else {
            for (int lane = 0; lane < columns; ++lane) to[lane] = even[lane];
          }
        }
        std::fill(to + columns, to + width, 0);
      }
    }
  }
};

}  // namespace qbert
