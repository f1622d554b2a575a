// What stands in front of the first block and behind the last: embeddings of the tokens of a batch, without its padding.

#pragma once

#include "dropout.h"

namespace {

constexpr int64_t kIgnored = -100;  // hftk.tasks.decoders.IGNORED

// Of the tokens of a batch (rows, positions): their places in it as one row, their positions, the starts of the rows, and the lengths
// of the shortest and the longest. A row has as many tokens as its mask says, which has to be padding on the right: else the shortest
// is -1; and no more than up to its last label that counts.
std::tuple<Tensor, Tensor, Tensor, int64_t, int64_t> places(int64_t rows, int64_t positions, const Optional& mask, const Optional& labels) {
  const auto usual = [&](const Optional& given) { return !given || (given->sizes() == at::IntArrayRef({rows, positions}) && given->scalar_type() == at::kLong && given->is_contiguous()); };
  TORCH_CHECK(usual(mask) && usual(labels), "expected mask and labels (rows, positions) of int64, contiguous");
  const Tensor starts = at::zeros({rows + 1}, at::kLong);
  int64_t *start = starts.data_ptr<int64_t>(), shortest = positions, longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t length = positions;
    if (mask) {
      const int64_t* seen = mask->const_data_ptr<int64_t>() + row * positions;
      while (length && !seen[length - 1]) --length;
      if (std::find(seen, seen + length, 0) != seen + length) shortest = -1;
    }
    if (labels) {
      const int64_t* label = labels->const_data_ptr<int64_t>() + row * positions;
      while (length && label[length - 1] == kIgnored) --length;
    }
    shortest = std::min(shortest, length), longest = std::max(longest, length);
    start[row + 1] = start[row] + length;
  }
  const Tensor place = at::empty({start[rows]}, at::kLong), column = at::empty({start[rows]}, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    std::iota(place.data_ptr<int64_t>() + start[row], place.data_ptr<int64_t>() + start[row + 1], row * positions);
    std::iota(column.data_ptr<int64_t>() + start[row], column.data_ptr<int64_t>() + start[row + 1], 0);
  }
  return {place, column, starts, shortest, longest};
}

// A weight as the embeddings and the projection of one forward pass see it. All of its gradient comes through here, so that it may be
// put together in one place and not be added up from three of the size of the vocabulary.
struct Tied : torch::autograd::Function<Tied> {
  static Tensor forward(AutogradContext*, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView below;
    return at::alias(weight);
  }
  static variable_list backward(AutogradContext*, variable_list upstream) { return upstream; }
};

// (tokens, width): dropout of factor * weight[ids] + positions. With `into`, which the projection's loss gives as the gradient of the
// same Tied weight, that of these embeddings is added to it: the loss runs backward first, and Tied last. (A backward pass from states
// of the encoder alone, without the loss of the same forward pass, would lose it.)
struct EmbeddingBlock : torch::autograd::Function<EmbeddingBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& ids, const Tensor& weight, const Optional& positions, double factor, int64_t padding, const Optional& into, double dropout) {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t tokens = ids.numel(), width = weight.size(1);
    TORCH_CHECK(ids.scalar_type() == at::kLong && ids.is_contiguous() && weight.is_contiguous() && (!positions || (positions->is_contiguous() && positions->numel() == tokens * width)) &&
                    (!into || (into->is_contiguous() && into->sizes() == weight.sizes())),
                "expected ids (tokens) of int64, a weight (words, width), positions (tokens, width) and a gradient of the weight's shape, contiguous");
    const int64_t* words = ids.const_data_ptr<int64_t>();
    for (int64_t at = 0; at < tokens; ++at) TORCH_CHECK_INDEX(words[at] >= 0 && words[at] < weight.size(0), "a token is outside of the vocabulary of ", weight.size(0));
    const Tensor made = at::empty({tokens, width}, weight.options());
    const Dropout dropped = Dropout::draw(dropout, made.numel());
    const float scale = static_cast<float>(factor), *added = data(plain(positions));
    at::parallel_for(0, tokens, rows_at_once(width), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const float* from = data(weight) + words[at] * width;
        float* to = mutable_data(made) + at * width;
        for (int64_t i = 0; i < width; ++i) to[i] = from[i] * scale;
        if (added)
          for (int64_t i = 0; i < width; ++i) to[i] += added[at * width + i];
        if (dropped.numbers.defined()) dropped.apply(to, to, at * width, width);
      }
    });
    ctx->save_for_backward({ids, dropped.numbers});
    ctx->saved_data["integers"] = std::vector<int64_t>{weight.size(0), padding, trained({weight}), trained({positions})};
    ctx->saved_data["numbers"] = std::vector<double>{factor, dropout};
    if (into) ctx->saved_data["into"] = *into;  // which changes until then: not as one that is saved for the backward pass
    return made;
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = ctx->get_saved_variables();
    const auto integers = ctx->saved_data["integers"].toIntVector();
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    Tensor grad = upstream[0].contiguous(), from_weight;
    if (saved[1].defined()) Dropout(numbers[1], saved[1]).apply(grad = grad.clone());
    if (ctx->saved_data.count("into")) {
      const Tensor into = ctx->saved_data["into"].toTensor();
      ctx->saved_data.erase("into");  // AccumulateGrad copies a gradient that someone else holds
      const float factor = static_cast<float>(numbers[0]);
      for (int64_t at = 0, width = grad.size(1); at < grad.size(0); ++at) {
        const int64_t word = saved[0].const_data_ptr<int64_t>()[at];
        if (word == integers[1]) continue;
        const float* from = data(grad) + at * width;
        float* to = mutable_data(into) + word * width;
        for (int64_t i = 0; i < width; ++i) to[i] += factor * from[i];
      }
    } else if (integers[2] != 0) {
      from_weight = at::embedding_dense_backward(numbers[0] == 1 ? grad : grad.mul(numbers[0]), saved[0], integers[0], integers[1], false);
    }
    return {Tensor(), from_weight, integers[3] != 0 ? grad : Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// (rows x positions, width) of (tokens, width), 0 where no token is.
struct Spread : torch::autograd::Function<Spread> {
  static Tensor forward(AutogradContext* ctx, const Tensor& packed, const Tensor& places, int64_t count) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({places});
    return at::zeros({count, packed.size(1)}, packed.options()).index_copy_(0, places, packed);
  }
  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    return {upstream[0].index_select(0, ctx->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

}  // namespace
