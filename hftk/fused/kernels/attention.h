// Attention of rows of unequal length that stand side by side, without padding between them.

#pragma once

#include "frame.h"
#include "small_products.h"

namespace {

// Queries, keys and values in one or two matrices of tokens: where each begins, and how far its tokens are apart.
struct Side {
  float* values;
  int64_t step;
};

// The heads of each row, and where they find what they read and write. Row r has the tokens from starts[r] to starts[r + 1].
struct Heads {
  Tensor queries, keys;  // starts, (rows + 1) of int64
  int64_t number, width;
  float scale;
  bool causal;
  std::vector<int64_t> first{0};  // where the scores of each row begin: (heads, its queries, its keys padded)

  Heads(const Tensor& query_starts, const Tensor& key_starts, int64_t heads, int64_t head_width, double factor, bool is_causal)
      : queries(query_starts), keys(key_starts), number(heads), width(head_width), scale(static_cast<float>(factor)), causal(is_causal) {
    for (int64_t row = 0; row < rows(); ++row) first.push_back(first.back() + number * queries_of(row) * padded(keys_of(row)));
  }
  int64_t rows() const { return queries.numel() - 1; }
  int64_t pairs() const { return rows() * number; }
  int64_t queries_of(int64_t row) const { return length(queries, row); }
  int64_t keys_of(int64_t row) const { return length(keys, row); }
  int64_t scores() const { return first.back(); }
  int64_t scores_of(int64_t pair) const { return first[pair / number] + pair % number * queries_of(pair / number) * padded(keys_of(pair / number)); }
  int64_t seen(int64_t query, int64_t count) const { return causal ? query + 1 : count; }
  int64_t at_once() const { return std::max<int64_t>(1, kWorkAtOnce * 16 / std::max<int64_t>(1, 2 * scores() / std::max<int64_t>(1, pairs()) * width)); }
  float* of(const Side& side, int64_t pair, const Tensor& starts) const { return side.values + starts.const_data_ptr<int64_t>()[pair / number] * side.step + pair % number * width; }

 private:
  static int64_t length(const Tensor& starts, int64_t row) { return starts.const_data_ptr<int64_t>()[row + 1] - starts.const_data_ptr<int64_t>()[row]; }
};

// Whether these are starts of rows that hold `tokens` in all.
bool are_starts(const Tensor& starts, int64_t tokens) {
  if (starts.scalar_type() != at::kLong || starts.dim() != 1 || !starts.is_contiguous() || starts.numel() < 2) return false;
  const int64_t* values = starts.const_data_ptr<int64_t>();
  return values[0] == 0 && values[starts.numel() - 1] == tokens && std::is_sorted(values, values + starts.numel());
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

// mixed (tokens, heads x width) and the scores' probabilities; bias (heads, queries, keys) is that of the longest row, and has the
// keys side by side
void attend(const Heads& heads, Side q, Side k, Side v, const Tensor& bias, const Tensor& probabilities, const Dropout& dropout, const Tensor& mixed) {
  const int64_t width = heads.width, all = heads.number * width;
  at::parallel_for(0, heads.pairs(), heads.at_once(), [&](int64_t begin, int64_t end) {
    std::vector<float> turned, kept;
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t queries = heads.queries_of(pair / heads.number), keys = heads.keys_of(pair / heads.number), wide = padded(keys), first = heads.scores_of(pair);
      turned.resize(wide * width);
      transpose(heads.of(k, pair, heads.keys), k.step, turned.data(), keys, width);
      float *shares = mutable_data(probabilities) + first, *used = shares;
      small_product({heads.of(q, pair, heads.queries), q.step, 1}, queries, width, turned.data(), wide, shares, wide, wide);
      for (int64_t i = 0; i < queries; ++i) {
        float* scores = shares + i * wide;
        for (int64_t j = 0; j < wide; ++j) scores[j] *= heads.scale;
        if (bias.defined()) {
          const float* added = data(bias) + pair % heads.number * bias.stride(0) + i * bias.stride(1);
          for (int64_t j = 0; j < keys; ++j) scores[j] += added[j];
        }
        softmax(scores, heads.seen(i, keys), wide);
      }
      if (dropout.numbers.defined()) {
        kept.resize(queries * wide);
        used = kept.data();
        dropout.apply(shares, used, first, queries * wide);
      }
      small_product({used, wide, 1}, queries, keys, heads.of(v, pair, heads.keys), v.step, heads.of({mutable_data(mixed), all}, pair, heads.queries), all, width);
    }
  });
}

// Gradients into the places of queries, keys and values; into from_scores (as probabilities), if defined, that of the scores.
void attend_back(const Heads& heads, Side q, Side k, Side v, const Tensor& probabilities, const Dropout& dropout, const Tensor& from_mixed, Side to_q, Side to_k, Side to_v, const Tensor& from_scores) {
  const int64_t width = heads.width, all = heads.number * width;
  at::parallel_for(0, heads.pairs(), heads.at_once(), [&](int64_t begin, int64_t end) {
    std::vector<float> turned, slopes, kept;
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t queries = heads.queries_of(pair / heads.number), keys = heads.keys_of(pair / heads.number), wide = padded(keys), first = heads.scores_of(pair);
      const float *grads = heads.of({mutable_data(from_mixed), all}, pair, heads.queries), *shares = data(probabilities) + first, *used = shares;
      if (dropout.numbers.defined()) {
        kept.resize(queries * wide);
        dropout.apply(shares, kept.data(), first, queries * wide);
        used = kept.data();
      }
      turned.resize(wide * width);
      slopes.resize(queries * wide);
      transpose(heads.of(v, pair, heads.keys), v.step, turned.data(), keys, width);
      small_product({grads, all, 1}, queries, width, turned.data(), wide, slopes.data(), wide, wide);
      if (dropout.numbers.defined()) dropout.apply(slopes.data(), slopes.data(), first, queries * wide);
      for (int64_t i = 0; i < queries; ++i) {
        float *slope = slopes.data() + i * wide, along = 0;
        const float* share = shares + i * wide;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < wide; ++j) along += slope[j] * share[j];
        for (int64_t j = 0; j < wide; ++j) slope[j] = (slope[j] - along) * share[j];
      }
      if (from_scores.defined()) std::copy(slopes.begin(), slopes.end(), mutable_data(from_scores) + first);
      for (float& slope : slopes) slope *= heads.scale;
      small_product({slopes.data(), wide, 1}, queries, keys, heads.of(k, pair, heads.keys), k.step, heads.of(to_q, pair, heads.queries), to_q.step, width);
      small_product({slopes.data(), 1, wide}, keys, queries, heads.of(q, pair, heads.queries), q.step, heads.of(to_k, pair, heads.keys), to_k.step, width);
      small_product({used, 1, wide}, keys, queries, grads, all, heads.of(to_v, pair, heads.keys), to_v.step, width);
    }
  });
}

// The gradient of a bias of the scores, which all rows share.
Tensor sum_of_rows(const Heads& heads, const Tensor& from_scores, const Tensor& bias) {
  const Tensor sum = at::zeros_like(bias, at::MemoryFormat::Contiguous);
  at::parallel_for(0, heads.number, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      for (int64_t row = 0; row < heads.rows(); ++row) {
        const int64_t keys = heads.keys_of(row), wide = padded(keys);
        const float* from = data(from_scores) + heads.scores_of(row * heads.number + head);
        for (int64_t i = 0; i < heads.queries_of(row); ++i) {
          float* to = mutable_data(sum) + head * sum.stride(0) + i * sum.stride(1);
          for (int64_t j = 0; j < keys; ++j) to[j] += from[i * wide + j];
        }
      }
  });
  return sum;
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

// x (tokens, width), which attends to itself or to memory (its tokens, width); bias (heads, longest queries, longest keys).
struct AttentionBlock : torch::autograd::Function<AttentionBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& given_x, const Tensor& starts, const Optional& given_memory, const Optional& memory_starts, const Optional& bias, const Tensor& w_q,
                        const Tensor& w_k, const Tensor& w_v, const Tensor& w_o, const Optional& b_q, const Optional& b_k, const Optional& b_v, const Optional& b_o, const Tensor& norm_weight,
                        const Optional& norm_bias, int64_t number, double scale, bool causal, double attention_dropout, bool before, bool rms, double eps, double dropout) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor x = given_x.contiguous(), memory = given_memory ? given_memory->contiguous() : Tensor();
    const Tensor key_starts = memory.defined() ? *memory_starts : starts;
    TORCH_CHECK(are_starts(starts, x.size(0)) && key_starts.numel() == starts.numel() && are_starts(key_starts, memory.defined() ? memory.size(0) : x.size(0)),
                "expected starts of rows (rows + 1), from 0 to the number of tokens, as many for the memory");
    const Heads heads(starts, key_starts, number, w_q.size(0) / number, scale, causal);
    int64_t longest_queries = 0, longest_keys = 0;
    for (int64_t row = 0; row < heads.rows(); ++row) {
      TORCH_CHECK(heads.keys_of(row) > 0 || heads.queries_of(row) == 0, "expected at least one key in row ", row);
      longest_queries = std::max(longest_queries, heads.queries_of(row)), longest_keys = std::max(longest_keys, heads.keys_of(row));
    }
    TORCH_CHECK(!bias || (bias->dim() == 3 && bias->size(0) == number && bias->size(1) >= longest_queries && bias->size(2) >= longest_keys && (bias->stride(2) == 1 || bias->size(2) == 1)),
                "expected a bias (heads, queries, keys) for the longest row, whose keys lie side by side");
    const Frame frame{{norm_weight, plain(norm_bias), eps, rms}, before, dropout};
    const Entered entered = enter(frame, x);
    const Joined one = memory.defined() ? Joined({w_q}, {plain(b_q)}) : Joined({w_q, w_k, w_v}, {plain(b_q), plain(b_k), plain(b_v)});
    const Joined two = memory.defined() ? Joined({w_k, w_v}, {plain(b_k), plain(b_v)}) : Joined({Tensor()}, {Tensor()});
    const Tensor first = product(entered.read, one.matrix, one.bias), second = memory.defined() ? product(memory, two.matrix, two.bias) : Tensor();
    const Tensor probabilities = at::empty({heads.scores()}, x.options()), mixed = at::empty({x.size(0), w_q.size(0)}, x.options());
    const Dropout inside = Dropout::draw(attention_dropout, probabilities.numel());
    const Sides sides = sides_of(first, second);
    attend(heads, sides.q, sides.k, sides.v, plain(bias), probabilities, inside, mixed);
    const Left left = leave(frame, x, at::mm(mixed, w_o.t()), plain(b_o));
    const Normed& normed = before ? entered.normed : left.normed;
    ctx->save_for_backward({before ? x : left.total, entered.read, memory, first, second, probabilities, inside.numbers, mixed, left.numbers, normed.mean, normed.scale,
                            one.matrix, two.matrix, w_o, norm_weight, plain(norm_bias), starts, key_starts, plain(bias)});
    ctx->saved_data["integers"] = std::vector<int64_t>{number, causal, before, rms, b_q.has_value(), b_o.has_value(),
                                                    trained({given_memory}), trained({bias}), trained({w_q, w_k, w_v, b_q, b_k, b_v}), trained({w_o, b_o})};
    ctx->saved_data["numbers"] = std::vector<double>{scale, attention_dropout, dropout, eps};
    return left.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = ctx->get_saved_variables();
    const Tensor &normed_x = saved[0], &read = saved[1], &memory = saved[2], &first = saved[3], &second = saved[4], &probabilities = saved[5], &mixed = saved[7];
    const auto integers = ctx->saved_data["integers"].toIntVector();
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    const Frame frame{{saved[14], saved[15], numbers[3], integers[3] != 0}, integers[2] != 0, numbers[2]};
    const Heads heads(saved[16], saved[17], integers[0], mixed.size(1) / integers[0], numbers[0], integers[1] != 0);
    const bool qkv_biases = integers[4] != 0, o_bias = integers[5] != 0;
    Returned back = come_back(frame, upstream[0].contiguous(), normed_x, saved[8], saved[9], saved[10]);
    variable_list matrices(4), biases(4);
    weight_grads(matrices, biases, 3, back.from_made, mixed, 1, integers[9] != 0, o_bias);
    const Tensor from_mixed = at::mm(back.from_made, saved[13]);
    const Tensor from_first = at::empty_like(first), from_second = second.defined() ? at::empty_like(second) : Tensor();
    const Tensor from_scores = integers[7] != 0 ? at::empty_like(probabilities) : Tensor();
    const Sides sides = sides_of(first, second), to = sides_of(from_first, from_second);
    attend_back(heads, sides.q, sides.k, sides.v, probabilities, Dropout(numbers[1], saved[6]), from_mixed, to.q, to.k, to.v, from_scores);
    const bool wanted = integers[8] != 0;
    weight_grads(matrices, biases, 0, from_first, read, second.defined() ? 1 : 3, wanted, qkv_biases);
    Tensor from_memory;
    if (second.defined()) {
      weight_grads(matrices, biases, 1, from_second, memory, 2, wanted, qkv_biases);
      if (integers[6] != 0) from_memory = at::mm(from_second, saved[12]);
    }
    const Tensor from_read = frame.before ? at::mm(from_first, saved[11]) : back.beside.addmm_(from_first, saved[11]);
    const Tensor from_x = go_out(frame, back, from_read, normed_x, saved[9], saved[10]);
    variable_list grads{from_x, Tensor(), from_memory, Tensor(), from_scores.defined() ? sum_of_rows(heads, from_scores, saved[18]) : Tensor()};
    grads.insert(grads.end(), matrices.begin(), matrices.end());
    grads.insert(grads.end(), biases.begin(), biases.end());
    grads.insert(grads.end(), {back.norm.weight, back.norm.bias});
    grads.resize(23);
    return grads;
  }
};

}  // namespace
