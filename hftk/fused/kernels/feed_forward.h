// Feed-forward blocks.

#pragma once

#include "frame.h"

namespace {

enum Activation : int64_t { kRelu, kGelu, kGeluTanh, kSilu };  // the order of hftk.fused.layers.ACTIVATIONS

// Of x + bias. That of ReLU is written over x, from which its gradient is as well known.
Tensor activate(int64_t kind, const Tensor& x, const Tensor& bias) {
  const int64_t width = x.size(1);
  const float* added = data(bias);
  if (added || kind == kRelu) at::parallel_for(0, x.size(0), rows_at_once(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = mutable_data(x) + row * width;
      if (added)
        for (int64_t i = 0; i < width; ++i) values[i] += added[i];
      if (kind == kRelu)
        for (int64_t i = 0; i < width; ++i) values[i] = values[i] < 0 ? 0 : values[i];  // what is no number stays
    }
  });
  switch (kind) {
    case kRelu: return x;
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

// W2 activation(W1 x) of x (tokens, width), with a gate as in Shazeer 2020 where there is a second first matrix.
struct FeedForwardBlock : torch::autograd::Function<FeedForwardBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& given_x, const Tensor& w_1, const Optional& w_gate, const Tensor& w_2, const Optional& b_1, const Optional& b_2, const Tensor& norm_weight,
                        const Optional& norm_bias, int64_t activation, double inner_dropout, bool before, bool rms, double eps, double dropout) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Frame frame{{norm_weight, plain(norm_bias), eps, rms}, before, dropout};
    const Tensor x = given_x.contiguous();
    const Entered entered = enter(frame, x);
    const Tensor raw = at::mm(entered.read, w_1.t()), active = activate(activation, raw, plain(b_1));
    const Tensor gate = w_gate ? at::mm(entered.read, w_gate->t()) : Tensor();
    const Tensor hidden = w_gate ? at::mul(active, gate) : active;
    const Dropout inside = Dropout::draw(inner_dropout, hidden.numel());
    inside.apply(hidden);  // ReLU's stays known by it: what is dropped has no gradient either
    const Left left = leave(frame, x, at::mm(hidden, w_2.t()), plain(b_2));
    const Normed& normed = before ? entered.normed : left.normed;
    ctx->save_for_backward({before ? x : left.total, entered.read, raw, w_gate ? active : Tensor(), gate, hidden, inside.numbers, left.numbers, normed.mean, normed.scale, w_1, plain(w_gate), w_2,
                            norm_weight, plain(norm_bias)});
    ctx->saved_data["integers"] = std::vector<int64_t>{activation, before, rms, b_1.has_value(), b_2.has_value(), trained({w_1, b_1}), trained({w_gate}), trained({w_2, b_2})};
    ctx->saved_data["numbers"] = std::vector<double>{inner_dropout, dropout, eps};
    return left.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = ctx->get_saved_variables();
    const Tensor &normed_x = saved[0], &read = saved[1], &active = saved[3], &gate = saved[4];
    const auto integers = ctx->saved_data["integers"].toIntVector();
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    const Frame frame{{saved[13], saved[14], numbers[2], integers[2] != 0}, integers[1] != 0, numbers[1]};
    Returned back = come_back(frame, upstream[0].contiguous(), normed_x, saved[7], saved[8], saved[9]);
    variable_list matrices(3), biases(3);
    weight_grads(matrices, biases, 2, back.from_made, saved[5], 1, integers[7] != 0, integers[4] != 0);
    const Tensor from_hidden = at::mm(back.from_made, saved[12]);
    Dropout(numbers[0], saved[6]).apply(from_hidden);
    const Tensor from_raw = activate_back(integers[0], gate.defined() ? at::mul(from_hidden, gate) : from_hidden, saved[2]);
    weight_grads(matrices, biases, 0, from_raw, read, 1, integers[5] != 0, integers[3] != 0);
    Tensor from_read = frame.before ? at::mm(from_raw, saved[10]) : back.beside.addmm_(from_raw, saved[10]);
    if (gate.defined()) {
      const Tensor from_gate = at::mul(from_hidden, active);
      weight_grads(matrices, biases, 1, from_gate, read, 1, integers[6] != 0, false);
      from_read.addmm_(from_gate, saved[11]);
    }
    const Tensor from_x = go_out(frame, back, from_read, normed_x, saved[8], saved[9]);
    variable_list grads{from_x, matrices[0], matrices[1], matrices[2], biases[0], biases[2], back.norm.weight, back.norm.bias};
    grads.resize(14);
    return grads;
  }
};

}  // namespace
