// Dropout with random numbers of its own.

#pragma once

#include "basics.h"

namespace {

// As hftk.dropout has it, 16 bits decide about an element. They come from SplitMix64 (Steele et al. 2014), which torch's generator
// gives its start: drawing them all from that generator would take longer than what is made of them.
struct Dropout {
  Tensor numbers;  // undefined: nothing is dropped
  int16_t lowest_kept = 0;
  float scale = 1;

  Dropout(double p, const Tensor& drawn) : numbers(drawn) {
    const int64_t dropped = of_levels(p);
    lowest_kept = static_cast<int16_t>(dropped - 32768);
    scale = 65536.f / static_cast<float>(65536 - dropped);
  }
  static Dropout draw(double p, int64_t count) {
    if (of_levels(p) == 0) return Dropout(0, Tensor());
    const auto lowest = std::numeric_limits<int64_t>::min();
    const auto start = static_cast<uint64_t>(at::empty({1}, at::kLong).random_(lowest, std::optional<int64_t>()).const_data_ptr<int64_t>()[0]);
    const Tensor drawn = at::empty({(count + 3) / 4}, at::kLong);
    auto* to = reinterpret_cast<uint64_t*>(drawn.data_ptr<int64_t>());
    at::parallel_for(0, drawn.numel(), kWorkAtOnce, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        uint64_t z = start + static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        to[i] = z ^ (z >> 31);
      }
    });
    return Dropout(p, drawn);
  }
  const int16_t* at(int64_t element) const {
    return numbers.defined() ? reinterpret_cast<const int16_t*>(numbers.const_data_ptr<int64_t>()) + element : nullptr;
  }
  // to = from with the dropout of the elements from `element` on; both may be the same
  void apply(const float* from, float* to, int64_t element, int64_t count) const {
    const int16_t *drawn = at(element), lowest = lowest_kept;
    const float factor = scale;  // a member could be what `to` points at, and the loop would not become vector code
    for (int64_t i = 0; i < count; ++i) to[i] = (drawn[i] >= lowest ? factor : 0.f) * from[i];
  }
  void apply(const Tensor& tensor) const {
    if (!numbers.defined()) return;
    float* values = mutable_data(tensor);
    at::parallel_for(0, tensor.numel(), kWorkAtOnce, [&](int64_t begin, int64_t end) { apply(values + begin, values + begin, begin, end - begin); });
  }

 private:
  static int64_t of_levels(double p) { return std::min<int64_t>(std::llrint(p * 65536), 65535); }
};

}  // namespace
