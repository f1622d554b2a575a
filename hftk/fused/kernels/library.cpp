// A training step of an encoder-decoder on a CPU, from the embeddings to the clipped gradients. Attention and feed-forward blocks are one
// node of autograd each, with their norm, dropout and residual.
//
// A step of a small model is some thousand calls of torch, and most of its time is not arithmetic but those calls; here they are
// made without Python and without autograd's records, and what lies between two matrix products is one loop. The numbers are those
// of the layers that the blocks stand in for (Vaswani et al. 2017; norms before or after as in Xiong et al. 2020; RMS norms and
// biases on attention scores as in Raffel et al. 2020), up to rounding. Everything is float32.

#include <torch/library.h>

#include "attention.h"
#include "embedding.h"
#include "feed_forward.h"
#include "loss.h"

namespace {

Tensor attention(const Tensor& x, const Tensor& starts, const Optional& memory, const Optional& memory_starts, const Optional& bias, const Tensor& w_q, const Tensor& w_k, const Tensor& w_v, const Tensor& w_o, const Optional& b_q, const Optional& b_k,
                 const Optional& b_v, const Optional& b_o, const Tensor& norm_weight, const Optional& norm_bias, int64_t heads, double scale, bool causal, double attention_dropout, bool before,
                 bool rms, double eps, double dropout) {
  return AttentionBlock::apply(x, starts, memory, memory_starts, bias, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_weight, norm_bias, heads, scale, causal, attention_dropout, before, rms, eps, dropout);
}

Tensor feed_forward(const Tensor& x, const Tensor& w_1, const Optional& w_gate, const Tensor& w_2, const Optional& b_1, const Optional& b_2, const Tensor& norm_weight, const Optional& norm_bias,
                    int64_t activation, double inner_dropout, bool before, bool rms, double eps, double dropout) {
  return FeedForwardBlock::apply(x, w_1, w_gate, w_2, b_1, b_2, norm_weight, norm_bias, activation, inner_dropout, before, rms, eps, dropout);
}

Tensor embedding(const Tensor& ids, const Tensor& weight, const Optional& positions, double factor, int64_t padding, const Optional& into, double dropout) {
  return EmbeddingBlock::apply(ids, weight, positions, factor, padding, into, dropout);
}

Tensor tied(const Tensor& weight) { return Tied::apply(weight); }

Tensor spread(const Tensor& packed, const Tensor& places, int64_t count) { return Spread::apply(packed, places, count); }

}  // namespace

TORCH_LIBRARY(hftk, library) {
  library.def("places(int rows, int positions, Tensor? mask, Tensor? labels) -> (Tensor, Tensor, Tensor, int, int)", places);
  library.def("embedding(Tensor ids, Tensor weight, Tensor? positions, float factor, int padding, Tensor? into, float dropout) -> Tensor", embedding);
  library.def("tied(Tensor(a) weight) -> Tensor(a)", tied);
  library.def("spread(Tensor packed, Tensor places, int count) -> Tensor", spread);
  library.def(
      "attention(Tensor x, Tensor starts, Tensor? memory, Tensor? memory_starts, Tensor? bias, Tensor w_q, Tensor w_k, Tensor w_v, Tensor w_o, Tensor? b_q, Tensor? b_k, Tensor? b_v, Tensor? b_o, "
      "Tensor norm_weight, Tensor? norm_bias, int heads, float scale, bool causal, float attention_dropout, bool before, bool rms, float eps, float dropout) -> Tensor",
      attention);
  library.def(
      "feed_forward(Tensor x, Tensor w_1, Tensor? w_gate, Tensor w_2, Tensor? b_1, Tensor? b_2, Tensor norm_weight, Tensor? norm_bias, int activation, "
      "float inner_dropout, bool before, bool rms, float eps, float dropout) -> Tensor",
      feed_forward);
  library.def("clip_grad_norm_(Tensor(a!)[] grads, float most) -> Tensor", clip_grad_norm_);
  library.def("nats_(Tensor(a!) logits, Tensor? bias, Tensor targets, float shift) -> Tensor", nats_);
}
