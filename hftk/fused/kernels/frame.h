// Norms, and what stands around the inner part of a block: norm, dropout, residual; and products with matrices.

#pragma once

#include "dropout.h"

namespace {

// Of rows: (x - mean) / deviation * weight + bias, or without mean and bias (Zhang & Sennrich 2019).
struct Norm {
  Tensor weight, bias;
  double eps;
  bool rms;

  void forward(const float* x, float* y, int64_t width, float* mean, float* scale) const {
    const float *w = data(weight), *b = data(bias);
    float sum = 0, squares = 0;
    if (!rms) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) sum += x[i];
    }
    const float m = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += (x[i] - m) * (x[i] - m);
    const float s = 1.f / std::sqrt(squares / width + static_cast<float>(eps));
    for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - m) * s * w[i];
    if (b)
      for (int64_t i = 0; i < width; ++i) y[i] += b[i];
    *mean = m;
    *scale = s;
  }
  // from_x from the gradient of y; adds to those of weight and bias
  void backward(const float* grad, const float* x, float mean, float scale, float* from_x, float* from_weight, float* from_bias, int64_t width) const {
    const float* w = data(weight);
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = 0; i < width; ++i) {
      const float normed = (x[i] - mean) * scale;
      sum += grad[i] * w[i];
      along += grad[i] * w[i] * normed;
      from_weight[i] += grad[i] * normed;
      from_bias[i] += grad[i];
    }
    sum = rms ? 0.f : sum / width;
    along /= width;
    for (int64_t i = 0; i < width; ++i) from_x[i] = (grad[i] * w[i] - sum - (x[i] - mean) * scale * along) * scale;
  }
};

struct Normed {
  Tensor y, mean, scale;
};

Normed allocate_normed(const Tensor& x) { return {at::empty_like(x), at::empty({x.size(0)}, x.options()), at::empty({x.size(0)}, x.options())}; }

Normed apply_norm(const Norm& norm, const Tensor& x) {
  Normed made = allocate_normed(x);
  const int64_t width = x.size(1);
  at::parallel_for(0, x.size(0), rows_at_once(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      norm.forward(data(x) + row * width, mutable_data(made.y) + row * width, width, mutable_data(made.mean) + row, mutable_data(made.scale) + row);
  });
  return made;
}

struct NormGrads {
  Tensor x, weight, bias;
};

// The sums over rows are taken in pieces that do not depend on the number of threads, so that the result does not either.
NormGrads norm_grads(const Norm& norm, const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale) {
  const int64_t rows = x.size(0), width = x.size(1), piece = rows_at_once(width), pieces = (rows + piece - 1) / piece;
  Tensor from_x = at::empty_like(x), sums = at::zeros({2, pieces, width}, x.options());
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * piece; row < std::min(rows, end * piece); ++row) {
      float* own = mutable_data(sums) + row / piece * width;
      norm.backward(data(grad) + row * width, data(x) + row * width, data(mean)[row], data(scale)[row], mutable_data(from_x) + row * width, own, own + pieces * width, width);
    }
  });
  float* all = mutable_data(sums);
  for (int64_t of = 0; of < 2; ++of)
    for (int64_t at = 1; at < pieces; ++at)
      for (int64_t i = 0; i < width; ++i) all[of * pieces * width + i] += all[(of * pieces + at) * width + i];
  return {from_x, sums[0][0], norm.bias.defined() ? sums[1][0] : Tensor()};
}

// The frame of a block: x + dropout(inner(norm(x))), or norm(x + dropout(inner(x))) ------------------------------------

struct Frame {
  Norm norm;
  bool before;
  double dropout;
};

struct Entered {
  Tensor read;    // what the inner part reads
  Normed normed;  // of a norm before it
};

Entered enter(const Frame& frame, const Tensor& x) {
  if (!frame.before) return {x, {}};
  Normed normed = apply_norm(frame.norm, x);
  return {normed.y, normed};
}

struct Left {
  Tensor y, numbers, total;
  Normed normed;  // of a norm behind it
};

// `made` by the inner part, to which `bias` is to be added, is overwritten with the sum
Left leave(const Frame& frame, const Tensor& x, const Tensor& made, const Tensor& bias) {
  const int64_t width = x.size(1);
  const float* added = data(bias);
  const Dropout dropout = Dropout::draw(frame.dropout, x.numel());
  Left left{made, dropout.numbers, made, frame.before ? Normed{} : allocate_normed(made)};
  at::parallel_for(0, x.size(0), rows_at_once(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* total = mutable_data(made) + row * width;
      const float* beside = data(x) + row * width;
      if (added)
        for (int64_t i = 0; i < width; ++i) total[i] += added[i];
      if (dropout.numbers.defined()) dropout.apply(total, total, row * width, width);
      for (int64_t i = 0; i < width; ++i) total[i] += beside[i];
      if (!frame.before)
        frame.norm.forward(total, mutable_data(left.normed.y) + row * width, width, mutable_data(left.normed.mean) + row, mutable_data(left.normed.scale) + row);
    }
  });
  if (!frame.before) left.y = left.normed.y;
  return left;
}

struct Returned {
  Tensor beside;     // gradient that goes around the inner part; may be written to
  Tensor from_made;  // gradient of what the inner part gave
  NormGrads norm;
};

Returned come_back(const Frame& frame, const Tensor& grad, const Tensor& total, const Tensor& numbers, const Tensor& mean, const Tensor& scale) {
  Returned back;
  if (!frame.before) back.norm = norm_grads(frame.norm, grad, total, mean, scale);
  back.beside = frame.before ? grad : back.norm.x;
  const Dropout dropout(frame.dropout, numbers);
  back.from_made = back.beside;
  if (numbers.defined()) {
    back.from_made = at::empty_like(back.beside);
    at::parallel_for(0, grad.numel(), kWorkAtOnce, [&](int64_t begin, int64_t end) {
      dropout.apply(data(back.beside) + begin, mutable_data(back.from_made) + begin, begin, end - begin);
    });
  }
  return back;
}

// Gradient of the block's input from that of what the inner part read. `from_read` may be written to.
Tensor go_out(const Frame& frame, Returned& back, const Tensor& from_read, const Tensor& x, const Tensor& mean, const Tensor& scale) {
  if (!frame.before) return from_read;  // it was added to what goes around
  back.norm = norm_grads(frame.norm, from_read, x, mean, scale);
  return back.norm.x.add_(back.beside);
}

// Products --------------------------------------------------------------------------------------------------------------

Tensor product(const Tensor& x, const Tensor& matrix, const Tensor& bias) { return bias.defined() ? at::addmm(bias, x, matrix.t()) : at::mm(x, matrix.t()); }

// Several matrices with one input as one.
struct Joined {
  Tensor matrix, bias;

  Joined(std::vector<Tensor> matrices, std::vector<Tensor> biases) {
    matrix = matrices.size() == 1 ? matrices[0] : at::cat(matrices);
    if (biases[0].defined()) bias = biases.size() == 1 ? biases[0] : at::cat(biases);
  }
};

// Gradients of such a matrix and bias, in parts of `size` rows from `first` on of the two lists.
void weight_grads(variable_list& matrices, variable_list& biases, size_t first, const Tensor& grad, const Tensor& x, int64_t parts, bool wanted, bool with_bias) {
  if (!wanted) return;
  const int64_t size = grad.size(1) / parts;
  const Tensor matrix = at::mm(grad.t(), x), bias = with_bias ? grad.sum(at::IntArrayRef{0}) : Tensor();
  for (int64_t part = 0; part < parts; ++part) {
    matrices[first + part] = parts == 1 ? matrix : matrix.narrow(0, part * size, size);
    if (with_bias) biases[first + part] = parts == 1 ? bias : bias.narrow(0, part * size, size);
  }
}

}  // namespace
