// Attention and feed-forward blocks of Transformers on a CPU, each with its norm, dropout and residual as one node of autograd.
//
// A step of a small model is some thousand calls of torch, and most of its time is not arithmetic but those calls; here they are
// made without Python and without autograd's records, and what lies between two matrix products is one loop. The numbers are those
// of the layers that the blocks stand in for (Vaswani et al. 2017; norms before or after as in Xiong et al. 2020; RMS norms and
// biases on attention scores as in Raffel et al. 2020), up to rounding. Everything is float32.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <bit>
#include <cmath>
#include <limits>
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

// Dropout ---------------------------------------------------------------------------------------------------------------

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

// Norms -----------------------------------------------------------------------------------------------------------------

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

// `made` by the inner part is overwritten with the sum
Left leave(const Frame& frame, const Tensor& x, const Tensor& made) {
  const int64_t width = x.size(1);
  const Dropout dropout = Dropout::draw(frame.dropout, x.numel());
  Left left{made, dropout.numbers, made, frame.before ? Normed{} : allocate_normed(made)};
  at::parallel_for(0, x.size(0), rows_at_once(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* total = mutable_data(made) + row * width;
      const float* beside = data(x) + row * width;
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

// Attention -------------------------------------------------------------------------------------------------------------

// Queries, keys and values in one or two matrices of (batch x tokens) rows: where each begins, and how far its rows are apart.
struct Side {
  float* values;
  int64_t step;
};

struct Heads {
  int64_t batch, number, queries, keys, width;
  float scale;
  bool causal;

  int64_t at_once() const { return std::max<int64_t>(1, kWorkAtOnce * 16 / std::max<int64_t>(1, 2 * queries * keys * width)); }
  int64_t seen(int64_t query) const { return causal ? std::min(keys, query + 1 + keys - queries) : keys; }
  float* of(const Side& side, int64_t pair, int64_t tokens) const { return side.values + pair / number * tokens * side.step + pair % number * width; }
};

// Keys are padded to whole lines, so that loops over them are of a length that the compiler knows.
int64_t padded(int64_t keys) { return (keys + kLine - 1) / kLine * kLine; }

// (width, padded keys) from rows of keys or values, 0 behind them
void transpose(const float* from, int64_t step, float* to, int64_t keys, int64_t width) {
  const int64_t wide = padded(keys);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < keys; ++j) to[i * wide + j] = from[j * step + i];
    for (int64_t j = keys; j < wide; ++j) to[i * wide + j] = 0;
  }
}

// Row-major or turned: the element (i, j) is at i * row + j * column.
struct Matrix {
  const float* values;
  int64_t row, column;
};

// A line of numbers in registers, which need not stand at a round address.
typedef float Line __attribute__((vector_size(kLine * sizeof(float)), aligned(alignof(float)), may_alias));

// `Rows` rows and `Lines` lines of columns of the product of a (rows, count) and b (count, columns, side by side)
template <int64_t Rows, int64_t Lines>
inline void tile(Matrix a, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row) {
  Line sums[Rows][Lines] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Line* lines = reinterpret_cast<const Line*>(b + i * b_row);
    for (int64_t r = 0; r < Rows; ++r)
      for (int64_t l = 0; l < Lines; ++l) sums[r][l] += a.values[r * a.row + i * a.column] * lines[l];
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t l = 0; l < Lines; ++l) reinterpret_cast<Line*>(to + r * to_row)[l] = sums[r][l];
}
template <int64_t Rows>
inline void tiles(Matrix a, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row, int64_t columns) {
  int64_t j = 0;
  for (; j + 2 * kLine <= columns; j += 2 * kLine) tile<Rows, 2>(a, count, b + j, b_row, to + j, to_row);
  for (; j + kLine <= columns; j += kLine) tile<Rows, 1>(a, count, b + j, b_row, to + j, to_row);
  for (; j < columns; ++j)
    for (int64_t r = 0; r < Rows; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += a.values[r * a.row + i * a.column] * b[i * b_row + j];
      to[r * to_row + j] = sum;
    }
}
// to = a b. For products of a head, which are too small for the libraries that make large ones.
void small_product(Matrix a, int64_t rows, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row, int64_t columns) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) tiles<6>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
  for (; r + 3 <= rows; r += 3) tiles<3>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
  for (; r < rows; ++r) tiles<1>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
}
// Of the first `seen` scores; 0 behind them. `count` is a number of whole lines.
void softmax(float* scores, int64_t seen, int64_t count) {
  for (int64_t j = seen; j < count; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  const float highest = highest_of(scores, count);
  float sums[kLine] = {}, sum = 0;
  for (int64_t j = 0; j < count; j += kLine)
    for (int64_t l = 0; l < kLine; ++l) sums[l] += scores[j + l] = exp_of(scores[j + l] - highest);
  for (int64_t l = 0; l < kLine; ++l) sum += sums[l];
  const float share = 1.f / sum;
  for (int64_t j = 0; j < count; ++j) scores[j] *= share;
}

// mixed (batch x queries, heads x width) and probabilities (batch, heads, queries, padded keys); bias (batch, heads, queries, keys)
// may be expanded
void attend(const Heads& heads, Side q, Side k, Side v, const Tensor& bias, const Tensor& probabilities, const Dropout& dropout, const Tensor& mixed) {
  const int64_t width = heads.width, wide = padded(heads.keys), all = heads.number * width;
  at::parallel_for(0, heads.batch * heads.number, heads.at_once(), [&](int64_t begin, int64_t end) {
    std::vector<float> turned(wide * width), kept;
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t row = pair / heads.number, head = pair % heads.number;
      const float *queries = heads.of(q, pair, heads.queries), *values = heads.of(v, pair, heads.keys);
      transpose(heads.of(k, pair, heads.keys), k.step, turned.data(), heads.keys, width);
      const int64_t first = pair * heads.queries * wide;
      float *shares = mutable_data(probabilities) + first, *used = shares;
      small_product({queries, q.step, 1}, heads.queries, width, turned.data(), wide, shares, wide, wide);
      for (int64_t i = 0; i < heads.queries; ++i) {
        float* scores = shares + i * wide;
        for (int64_t j = 0; j < wide; ++j) scores[j] *= heads.scale;
        if (bias.defined()) {
          const float* added = data(bias) + row * bias.stride(0) + head * bias.stride(1) + i * bias.stride(2);
          for (int64_t j = 0; j < heads.keys; ++j) scores[j] += added[j];
        }
        softmax(scores, heads.seen(i), wide);
      }
      if (dropout.numbers.defined()) {
        kept.resize(heads.queries * wide);
        used = kept.data();
        dropout.apply(shares, used, first, heads.queries * wide);
      }
      small_product({used, wide, 1}, heads.queries, heads.keys, values, v.step, mutable_data(mixed) + row * heads.queries * all + head * width, all, width);
    }
  });
}

// Gradients into the places of queries, keys and values; into from_bias (as probabilities), if defined, that of the scores.
void attend_back(const Heads& heads, Side q, Side k, Side v, const Tensor& probabilities, const Dropout& dropout, const Tensor& from_mixed, Side to_q, Side to_k, Side to_v, const Tensor& from_bias) {
  const int64_t width = heads.width, wide = padded(heads.keys), all = heads.number * width;
  at::parallel_for(0, heads.batch * heads.number, heads.at_once(), [&](int64_t begin, int64_t end) {
    std::vector<float> turned(wide * width), slopes(heads.queries * wide), kept;
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t row = pair / heads.number, head = pair % heads.number, first = pair * heads.queries * wide;
      const float *queries = heads.of(q, pair, heads.queries), *grads = data(from_mixed) + row * heads.queries * all + head * width;
      const float *shares = data(probabilities) + first, *used = shares;
      if (dropout.numbers.defined()) {
        kept.resize(heads.queries * wide);
        dropout.apply(shares, kept.data(), first, heads.queries * wide);
        used = kept.data();
      }
      transpose(heads.of(v, pair, heads.keys), v.step, turned.data(), heads.keys, width);
      small_product({grads, all, 1}, heads.queries, width, turned.data(), wide, slopes.data(), wide, wide);
      if (dropout.numbers.defined()) dropout.apply(slopes.data(), slopes.data(), first, heads.queries * wide);
      for (int64_t i = 0; i < heads.queries; ++i) {
        float *slope = slopes.data() + i * wide, along = 0;
        const float* share = shares + i * wide;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < wide; ++j) along += slope[j] * share[j];
        for (int64_t j = 0; j < wide; ++j) slope[j] = (slope[j] - along) * share[j];
      }
      if (from_bias.defined()) std::copy(slopes.begin(), slopes.end(), mutable_data(from_bias) + first);
      for (float& slope : slopes) slope *= heads.scale;
      small_product({slopes.data(), wide, 1}, heads.queries, heads.keys, heads.of(k, pair, heads.keys), k.step, heads.of(to_q, pair, heads.queries), to_q.step, width);
      small_product({slopes.data(), 1, wide}, heads.keys, heads.queries, queries, q.step, heads.of(to_k, pair, heads.keys), to_k.step, width);
      small_product({used, 1, wide}, heads.keys, heads.queries, grads, all, heads.of(to_v, pair, heads.keys), to_v.step, width);
    }
  });
}

struct Sides {
  Side q, k, v;
};

// `first` has queries, keys and values, or the queries alone, and `second` keys and values.
Sides sides_of(const Tensor& first, const Tensor& second) {
  float* start = mutable_data(first);
  if (!second.defined()) {
    const int64_t size = first.size(1) / 3;
    return {{start, 3 * size}, {start + size, 3 * size}, {start + 2 * size, 3 * size}};
  }
  const int64_t size = first.size(1);
  return {{start, size}, {mutable_data(second), 2 * size}, {mutable_data(second) + size, 2 * size}};
}

struct AttentionBlock : torch::autograd::Function<AttentionBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Optional& memory, const Optional& bias, const Tensor& w_q, const Tensor& w_k, const Tensor& w_v, const Tensor& w_o,
                        const Optional& b_q, const Optional& b_k, const Optional& b_v, const Optional& b_o, const Tensor& norm_weight, const Optional& norm_bias, int64_t number,
                        double scale, bool causal, double attention_dropout, bool before, bool rms, double eps, double dropout) {
    at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK(x.numel() && (!memory || memory->numel()), "expected at least one position");
    TORCH_CHECK(!bias || (bias->sizes() == at::IntArrayRef({x.size(0), number, x.size(1), memory ? memory->size(1) : x.size(1)}) && (bias->size(3) == 1 || bias->stride(3) == 1)),
                "expected a bias (batch, heads, queries, keys) whose keys lie side by side");
    const Frame frame{{norm_weight, plain(norm_bias), eps, rms}, before, dropout};
    const Tensor flat = x.reshape({-1, x.size(2)}).contiguous(), source = memory ? memory->reshape({-1, memory->size(2)}).contiguous() : Tensor();
    const Entered entered = enter(frame, flat);
    const Joined one = memory ? Joined({w_q}, {plain(b_q)}) : Joined({w_q, w_k, w_v}, {plain(b_q), plain(b_k), plain(b_v)});
    const Joined two = memory ? Joined({w_k, w_v}, {plain(b_k), plain(b_v)}) : Joined({Tensor()}, {Tensor()});
    const Tensor first = product(entered.read, one.matrix, one.bias), second = memory ? product(source, two.matrix, two.bias) : Tensor();
    const Heads heads{x.size(0), number, x.size(1), memory ? memory->size(1) : x.size(1), w_q.size(0) / number, static_cast<float>(scale), causal};
    const Tensor probabilities = at::empty({heads.batch, number, heads.queries, padded(heads.keys)}, x.options()), mixed = at::empty({flat.size(0), w_q.size(0)}, x.options());
    const Dropout inside = Dropout::draw(attention_dropout, probabilities.numel());
    const Sides sides = sides_of(first, second);
    attend(heads, sides.q, sides.k, sides.v, plain(bias), probabilities, inside, mixed);
    const Left left = leave(frame, flat, product(mixed, w_o, plain(b_o)));
    const Normed& normed = before ? entered.normed : left.normed;
    ctx->save_for_backward({before ? flat : left.total, entered.read, source, first, second, probabilities, inside.numbers, mixed, left.numbers, normed.mean, normed.scale,
                            one.matrix, two.matrix, w_o, norm_weight, plain(norm_bias)});
    ctx->saved_data["heads"] = std::vector<int64_t>{heads.batch, number, heads.queries, heads.keys, heads.width, causal, before, rms, b_q.has_value(), b_o.has_value(),
                                                    trained({memory}), trained({bias}), trained({w_q, w_k, w_v, b_q, b_k, b_v}), trained({w_o, b_o})};
    ctx->saved_data["numbers"] = std::vector<double>{scale, attention_dropout, dropout, eps};
    return left.y.view(x.sizes());
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = ctx->get_saved_variables();
    const Tensor &normed_x = saved[0], &read = saved[1], &source = saved[2], &first = saved[3], &second = saved[4], &probabilities = saved[5], &mixed = saved[7];
    const auto whole = ctx->saved_data["heads"].toIntVector();
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    const Frame frame{{saved[14], saved[15], numbers[3], whole[7] != 0}, whole[6] != 0, numbers[2]};
    const Heads heads{whole[0], whole[1], whole[2], whole[3], whole[4], static_cast<float>(numbers[0]), whole[5] != 0};
    const bool qkv_biases = whole[8] != 0, o_bias = whole[9] != 0;
    const Tensor grad = upstream[0].reshape({-1, upstream[0].size(2)}).contiguous();
    Returned back = come_back(frame, grad, normed_x, saved[8], saved[9], saved[10]);
    variable_list matrices(4), biases(4);
    weight_grads(matrices, biases, 3, back.from_made, mixed, 1, whole[13] != 0, o_bias);
    const Tensor from_mixed = at::mm(back.from_made, saved[13]);
    const Tensor from_first = at::empty_like(first), from_second = second.defined() ? at::empty_like(second) : Tensor();
    const Tensor from_bias = whole[11] != 0 ? at::empty_like(probabilities) : Tensor();
    const Sides sides = sides_of(first, second), to = sides_of(from_first, from_second);
    attend_back(heads, sides.q, sides.k, sides.v, probabilities, Dropout(numbers[1], saved[6]), from_mixed, to.q, to.k, to.v, from_bias);
    const bool wanted = whole[12] != 0;
    weight_grads(matrices, biases, 0, from_first, read, second.defined() ? 1 : 3, wanted, qkv_biases);
    Tensor from_memory;
    if (second.defined()) {
      weight_grads(matrices, biases, 1, from_second, source, 2, wanted, qkv_biases);
      if (whole[10] != 0) from_memory = at::mm(from_second, saved[12]).view({heads.batch, heads.keys, source.size(1)});
    }
    const Tensor from_read = frame.before ? at::mm(from_first, saved[11]) : back.beside.addmm_(from_first, saved[11]);
    const Tensor from_x = go_out(frame, back, from_read, normed_x, saved[9], saved[10]);
    variable_list grads{from_x.view(upstream[0].sizes()), from_memory, from_bias.defined() ? from_bias.narrow(3, 0, heads.keys) : from_bias};
    grads.insert(grads.end(), matrices.begin(), matrices.end());
    grads.insert(grads.end(), biases.begin(), biases.end());
    grads.insert(grads.end(), {back.norm.weight, back.norm.bias});
    grads.resize(21);
    return grads;
  }
};

// Feed-forward ----------------------------------------------------------------------------------------------------------

enum Activation : int64_t { kRelu, kGelu, kGeluTanh, kSilu };  // the order of hftk.fused.layers.ACTIVATIONS

// That of ReLU is written over x, from which its gradient is as well known.
Tensor activate(int64_t kind, const Tensor& x) {
  switch (kind) {
    case kRelu: return at::relu_(const_cast<Tensor&>(x));
    case kGelu: return at::gelu(x);
    case kGeluTanh: return at::gelu(x, "tanh");
    default: return at::silu(x);
  }
}
Tensor activate_back(int64_t kind, const Tensor& grad, const Tensor& x) {
  Tensor into = grad;
  switch (kind) {
    case kRelu: return at::threshold_backward_out(into, grad, x, 0);
    case kGelu: return at::gelu_backward(grad, x);
    case kGeluTanh: return at::gelu_backward(grad, x, "tanh");
    default: return at::silu_backward(grad, x);
  }
}

// W2 activation(W1 x), with a gate as in Shazeer 2020 where there is a second first matrix.
struct FeedForwardBlock : torch::autograd::Function<FeedForwardBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w_1, const Optional& w_gate, const Tensor& w_2, const Optional& b_1, const Optional& b_2, const Tensor& norm_weight,
                        const Optional& norm_bias, int64_t activation, double inner_dropout, bool before, bool rms, double eps, double dropout) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Frame frame{{norm_weight, plain(norm_bias), eps, rms}, before, dropout};
    const Tensor flat = x.reshape({-1, x.size(2)}).contiguous();
    const Entered entered = enter(frame, flat);
    const Tensor raw = product(entered.read, w_1, plain(b_1)), active = activate(activation, raw);
    const Tensor gate = w_gate ? at::mm(entered.read, w_gate->t()) : Tensor();
    const Tensor hidden = w_gate ? at::mul(active, gate) : active;
    const Dropout inside = Dropout::draw(inner_dropout, hidden.numel());
    inside.apply(hidden);  // ReLU's stays known by it: what is dropped has no gradient either
    const Left left = leave(frame, flat, product(hidden, w_2, plain(b_2)));
    const Normed& normed = before ? entered.normed : left.normed;
    ctx->save_for_backward({before ? flat : left.total, entered.read, raw, w_gate ? active : Tensor(), gate, hidden, inside.numbers, left.numbers, normed.mean, normed.scale, w_1, plain(w_gate), w_2,
                            norm_weight, plain(norm_bias)});
    ctx->saved_data["whole"] = std::vector<int64_t>{activation, before, rms, b_1.has_value(), b_2.has_value(), trained({w_1, b_1}), trained({w_gate}), trained({w_2, b_2})};
    ctx->saved_data["numbers"] = std::vector<double>{inner_dropout, dropout, eps};
    return left.y.view(x.sizes());
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = ctx->get_saved_variables();
    const Tensor &normed_x = saved[0], &read = saved[1], &active = saved[3], &gate = saved[4];
    const auto whole = ctx->saved_data["whole"].toIntVector();
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    const Frame frame{{saved[13], saved[14], numbers[2], whole[2] != 0}, whole[1] != 0, numbers[1]};
    const Tensor grad = upstream[0].reshape({-1, upstream[0].size(2)}).contiguous();
    Returned back = come_back(frame, grad, normed_x, saved[7], saved[8], saved[9]);
    variable_list matrices(3), biases(3);
    weight_grads(matrices, biases, 2, back.from_made, saved[5], 1, whole[7] != 0, whole[4] != 0);
    const Tensor from_hidden = at::mm(back.from_made, saved[12]);
    Dropout(numbers[0], saved[6]).apply(from_hidden);
    const Tensor from_raw = activate_back(whole[0], gate.defined() ? at::mul(from_hidden, gate) : from_hidden, saved[2]);
    weight_grads(matrices, biases, 0, from_raw, read, 1, whole[5] != 0, whole[3] != 0);
    Tensor from_read = frame.before ? at::mm(from_raw, saved[10]) : back.beside.addmm_(from_raw, saved[10]);
    if (gate.defined()) {
      const Tensor from_gate = at::mul(from_hidden, active);
      weight_grads(matrices, biases, 1, from_gate, read, 1, whole[6] != 0, false);
      from_read.addmm_(from_gate, saved[11]);
    }
    const Tensor from_x = go_out(frame, back, from_read, normed_x, saved[8], saved[9]);
    variable_list grads{from_x.view(upstream[0].sizes()), matrices[0], matrices[1], matrices[2], biases[0], biases[2], back.norm.weight, back.norm.bias};
    grads.resize(14);
    return grads;
  }
};

Tensor attention(const Tensor& x, const Optional& memory, const Optional& bias, const Tensor& w_q, const Tensor& w_k, const Tensor& w_v, const Tensor& w_o, const Optional& b_q, const Optional& b_k,
                 const Optional& b_v, const Optional& b_o, const Tensor& norm_weight, const Optional& norm_bias, int64_t heads, double scale, bool causal, double attention_dropout, bool before,
                 bool rms, double eps, double dropout) {
  return AttentionBlock::apply(x, memory, bias, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_weight, norm_bias, heads, scale, causal, attention_dropout, before, rms, eps, dropout);
}

Tensor feed_forward(const Tensor& x, const Tensor& w_1, const Optional& w_gate, const Tensor& w_2, const Optional& b_1, const Optional& b_2, const Tensor& norm_weight, const Optional& norm_bias,
                    int64_t activation, double inner_dropout, bool before, bool rms, double eps, double dropout) {
  return FeedForwardBlock::apply(x, w_1, w_gate, w_2, b_1, b_2, norm_weight, norm_bias, activation, inner_dropout, before, rms, eps, dropout);
}

// Loss and clipping -----------------------------------------------------------------------------------------------------

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

TORCH_LIBRARY(hftk, library) {
  library.def(
      "attention(Tensor x, Tensor? memory, Tensor? bias, Tensor w_q, Tensor w_k, Tensor w_v, Tensor w_o, Tensor? b_q, Tensor? b_k, Tensor? b_v, Tensor? b_o, "
      "Tensor norm_weight, Tensor? norm_bias, int heads, float scale, bool causal, float attention_dropout, bool before, bool rms, float eps, float dropout) -> Tensor",
      attention);
  library.def(
      "feed_forward(Tensor x, Tensor w_1, Tensor? w_gate, Tensor w_2, Tensor? b_1, Tensor? b_2, Tensor norm_weight, Tensor? norm_bias, int activation, "
      "float inner_dropout, bool before, bool rms, float eps, float dropout) -> Tensor",
      feed_forward);
  library.def("clip_grad_norm_(Tensor(a!)[] grads, float most) -> Tensor", clip_grad_norm_);
  library.def("nats_(Tensor(a!) logits, Tensor? bias, Tensor targets, float shift) -> Tensor", nats_);
}
