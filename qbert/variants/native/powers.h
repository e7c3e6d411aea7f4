// 2^(score - greatest) for a row of scores, and their sum: what softmax needs.
//
// A polynomial gives the power of the fractional part, and the whole part is added to the exponent: the relative error is
// 8e-5, a fiftieth of a step of bf16. A kernel may have another way (kernels/amx.h).
#pragma once

#include "vector.h"

namespace qbert {

template <class Dot>
struct Powers {
  static constexpr std::size_t kVectors = 1;  // at a time

  static void write(typename Dot::Element* to, const Several<Floats, 1>& scores, float greatest, Floats& total) {
    const Floats x = scores[0] - greatest, whole = nearest_whole(x), fraction = x - whole;
    const Floats mantissa =
        ((broadcast(5.51716672e-2f) * fraction + 2.42611122e-1f) * fraction + 6.93260986e-1f) * fraction + 9.99928074e-1f;
    const Floats power = scale(mantissa, whole);
    total += power;
    Dot::write(to, Several<Floats, 1>{power});
  }
};

}  // namespace qbert
