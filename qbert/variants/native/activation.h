// The functions between the two products of a feed-forward layer.
//
// GELU is x * Phi(x), computed with Phi(x) = 1/2 + x P(x^2) and P a polynomial: 12 instructions for 16 numbers, where erf
// takes 30. P is the minimax fit for |x| <= 4 under the constraint that Phi is exactly 0 and 1 at the ends; beyond them, Phi
// stays there. The error of x * Phi(x) is at most 2.5e-4, a fiftieth of the step in which the result is quantized. The tanh
// form of GELU has its own coefficients.
#pragma once

#include "vector.h"

namespace qbert {

enum Activation { kGelu, kGeluTanh, kRelu };

constexpr int kDegree = 6;
constexpr float kGeluErf[] = {3.97870259e-01f, -6.45544037e-02f, 8.76368746e-03f, -8.12186806e-04f,
                              4.77638231e-05f, -1.58882417e-06f, 2.25881543e-08f};
constexpr float kGeluOfTanh[] = {3.97713512e-01f, -6.45966816e-02f, 8.81870419e-03f, -8.24473494e-04f,
                                 4.89344224e-05f, -1.64071872e-06f, 2.34687639e-08f};

template <Activation activation>
inline Floats activate(Floats x) {
  if constexpr (activation == kRelu) {
    return maximum(x, Floats{});
  } else {
    constexpr const float* p = activation == kGelu ? kGeluErf : kGeluOfTanh;
    const Floats clamped = maximum(minimum(x, broadcast(4)), broadcast(-4));
    const Floats square = clamped * clamped;
    Floats sum = broadcast(p[kDegree]);
    for (int i = kDegree - 1; i >= 0; --i) sum = sum * square + p[i];
    return x * (clamped * sum + 0.5f);
  }
}

}  // namespace qbert
