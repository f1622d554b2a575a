// The loss over the vocabulary, and clipping.

#pragma once

#include "basics.h"

namespace {

// (positions,) nats of the targets; (positions, vocabulary) logits become their gradient, with `shift` (-1, or less of it) added
// at the target.
Tensor nats_(const Tensor& logits, const Optional& bias, const Tensor& targets, double shift) {
  const int64_t positions = logits.size(0), vocabulary = logits.size(1);
  TORCH_CHECK(logits.is_contiguous() && targets.is_contiguous() && targets.numel() == positions && (!bias || (bias->is_contiguous() && bias->numel() == vocabulary)),
              "expected contiguous logits (positions, vocabulary), targets (positions) and bias (vocabulary)");
  for (int64_t row = 0; row < positions; ++row)
    TORCH_CHECK_INDEX(targets.const_data_ptr<int64_t>()[row] >= 0 && targets.const_data_ptr<int64_t>()[row] < vocabulary, "a label is outside of the vocabulary of ", vocabulary);
  const Tensor nats = at::empty({positions}, logits.options());
  const float* added = data(plain(bias));
  const int64_t* wanted = targets.const_data_ptr<int64_t>();
  at::parallel_for(0, positions, rows_at_once(vocabulary), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* own = mutable_data(logits) + row * vocabulary;
      if (added)
        for (int64_t i = 0; i < vocabulary; ++i) own[i] += added[i];
      const float highest = highest_of(own, vocabulary), target = own[wanted[row]];
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < vocabulary; ++i) sum += own[i] = exp_of(own[i] - highest);
      const float share = 1.f / sum;
      for (int64_t i = 0; i < vocabulary; ++i) own[i] *= share;
      own[wanted[row]] += static_cast<float>(shift);
      mutable_data(nats)[row] = std::log(sum) + highest - target;
    }
  });
  return nats;
}

// The norm of all gradients together, which are scaled down to `most`, as torch.nn.utils.clip_grad_norm_ has it. Sums are of
// pieces that do not depend on the number of threads.
Tensor clip_grad_norm_(at::TensorList grads, double most) {
  struct Piece {
    float* values;
    int64_t count;
  };
  std::vector<Piece> pieces;
  for (const Tensor& grad : grads)
    for (int64_t start = 0; start < grad.numel(); start += kWorkAtOnce) pieces.push_back({mutable_data(grad) + start, std::min(kWorkAtOnce, grad.numel() - start)});
  std::vector<double> squares(pieces.size());
  const int64_t together = std::max<int64_t>(1, static_cast<int64_t>(pieces.size()) / at::get_num_threads());
  at::parallel_for(0, pieces.size(), together, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const Piece piece = pieces[at];
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < piece.count; ++i) sum += piece.values[i] * piece.values[i];
      squares[at] = sum;
    }
  });
  double sum = 0;
  for (const double square : squares) sum += square;
  const double norm = std::sqrt(sum), share = most / (norm + 1e-6);
  if (!(share >= 1)) {  // nan too, as torch does
    at::parallel_for(0, pieces.size(), together, [&](int64_t begin, int64_t end) {
      const float factor = static_cast<float>(share);
      for (int64_t at = begin; at < end; ++at)
        for (int64_t i = 0; i < pieces[at].count; ++i) pieces[at].values[i] *= factor;
    });
  }
  return at::scalar_tensor(norm, at::kFloat);
}

}  // namespace
