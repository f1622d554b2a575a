// What all blocks use: names, threads, and functions of numbers in loops that become vector code.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

constexpr int64_t kWorkAtOnce = 16384;  // elements, or multiplications of attention / 16, that are worth a thread
constexpr int64_t kLine = 16;           // numbers that are worked on at once, for loops whose length the compiler has to know

// ctx->needs_input_grad counts the given inputs alone; these flags are taken in the forward pass.
bool trained(std::initializer_list<Optional> tensors) {
  for (const auto& tensor : tensors)
    if (tensor && tensor->defined() && tensor->requires_grad()) return true;
  return false;
}
Tensor plain(const Optional& tensor) { return tensor.has_value() ? *tensor : Tensor(); }
const float* data(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }
float* mutable_data(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; }
int64_t rows_at_once(int64_t width) { return std::max<int64_t>(1, kWorkAtOnce / width); }

// e^x for x <= 0, with the polynomial of Cephes (Moshier 1989): two units in the last place, and loops over it become vector code.
inline float exp_of(float x) {
  const float whole = (x * 1.44269504088896341f + 12582912.f) - 12582912.f;
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * rest + 1.3981999507e-3f;
  y = y * rest + 8.3334519073e-3f;
  y = y * rest + 4.1665795894e-2f;
  y = y * rest + 1.6666665459e-1f;
  y = y * rest + 5.0000001201e-1f;
  y = y * rest * rest + rest + 1.f;
  const int32_t exponent = static_cast<int32_t>(whole < -126.f ? -126.f : whole) + 127;
  return x < -87.f ? 0.f : y * std::bit_cast<float>(exponent << 23);
}

// std::max in a loop would not become vector code
float highest_of(const float* values, int64_t count) {
  float most[kLine], highest = values[0];
  for (float& one : most) one = highest;
  int64_t at = 0;
  for (; at + kLine <= count; at += kLine)
    for (int64_t l = 0; l < kLine; ++l) most[l] = values[at + l] > most[l] ? values[at + l] : most[l];
  for (; at < count; ++at) highest = std::max(highest, values[at]);
  for (const float one : most) highest = std::max(highest, one);
  return highest;
}

}  // namespace
