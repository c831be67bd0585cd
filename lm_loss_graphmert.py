"""Cross-entropy over the vocabulary in parts of a few tokens, so that logits never stand in memory all at once.

A batch's labelled tokens times the vocabulary are its largest tensor by far: at 600 tokens and 50,265 words 121 MB in
float32, read and written many times by the softmax and its backward. In parts that fit a cache they cost little more than
their matrix products. For the backward pass the CPU keeps them in the dtype of the matrix products; elsewhere, where memory
is dearer than time, they are computed again.

Shape suffixes: M labelled nodes, m nodes of one part, D hidden, V vocabulary.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .graph_layers_graphmert import attention_dtype

# Logits of one part, in elements: 8 MB in float32 on the CPU, where they should stay in a cache.
PART_ELEMENTS = {"cpu": 2**21}
PART_ELEMENTS_ELSEWHERE = 2**28
# Devices on which exp(logits) are kept for the backward pass.
KEEPS_EXPONENTIALS = ("cpu",)


def linear_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and prediction of each labelled node, without all logits at once.

    The same as `F.cross_entropy(F.linear(states, weight, bias).float(), labels, reduction="none")` and the logits' argmax.

    Args:
        states: float (M, D), after the LM head's transformation.
        weight: float (V, D), the decoder's, tied to the word embeddings.
        bias: float (V,).
        labels: int64 (M,), 0..V-1.

    Returns:
        losses float32 (M,) (float64 for float64 states), and predictions int64 (M,).
    """
    if torch.compiler.is_compiling():
        # The compiler fuses softmax and loss itself, and would have to unroll a loop whose length changes.
        logits_MV = F.linear(states, weight, bias)
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
        return F.cross_entropy(logits_MV, labels, reduction="none"), logits_MV.argmax(-1)
    return _LinearCrossEntropy.apply(states, weight, bias, labels, attention_dtype(states))


def _parts(num_nodes: int, vocab_size: int, device_type: str) -> list[slice]:
    most = max(16, PART_ELEMENTS.get(device_type, PART_ELEMENTS_ELSEWHERE) // vocab_size // 16 * 16)
    return [slice(start, min(start + most, num_nodes)) for start in range(0, num_nodes, most)]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, labels, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        low_MD, low_VD = states.to(dtype), weight.to(dtype)
        losses_M = torch.empty(len(labels), dtype=wide, device=states.device)
        log_total_M, predicted_M = torch.empty_like(losses_M), torch.empty_like(labels)
        ctx.parts = _parts(len(labels), len(weight), states.device.type)
        kept = []
        for part in ctx.parts:
            logits_mV = _logits(low_MD[part], low_VD, bias, wide)
            largest_m, predicted_M[part] = logits_mV.max(-1)
            chosen_m = logits_mV.gather(1, labels[part, None])[:, 0]
            exp_mV = logits_mV.sub_(largest_m[:, None]).exp_()
            log_total_m = exp_mV.sum(-1).log_()
            losses_M[part] = largest_m + log_total_m - chosen_m
            if states.device.type in KEEPS_EXPONENTIALS and any(ctx.needs_input_grad):
                kept.append(exp_mV.to(dtype))
                log_total_M[part] = log_total_m
            else:
                log_total_M[part] = largest_m + log_total_m
        ctx.save_for_backward(low_MD, low_VD, bias, labels, log_total_M, *kept)
        ctx.dtypes = states.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(predicted_M)
        return losses_M, predicted_M

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_M, _grad_predicted):
        low_MD, low_VD, bias, labels, log_total_M, *kept = ctx.saved_tensors
        wide = log_total_M.dtype
        grad_states = torch.empty_like(low_MD)
        grad_weight = torch.zeros(low_VD.shape, dtype=wide, device=low_VD.device)
        grad_bias = torch.zeros(len(low_VD), dtype=wide, device=low_VD.device)
        for index, part in enumerate(ctx.parts):
            part_mD, grad_m, total_m = low_MD[part], grad_M[part], log_total_M[part]
            if kept:
                grad_mV = kept[index].to(wide).mul_((grad_m * (-total_m).exp())[:, None])
            else:
                grad_mV = _logits(part_mD, low_VD, bias, wide).sub_(total_m[:, None]).exp_()
                grad_mV.mul_(grad_m[:, None])
            grad_mV.scatter_add_(1, labels[part, None], -grad_m[:, None])
            grad_bias += grad_mV.sum(0)
            grad_mV = grad_mV.to(low_MD.dtype)
            grad_states[part] = grad_mV @ low_VD
            if grad_weight.dtype == part_mD.dtype:
                grad_weight.addmm_(grad_mV.t(), part_mD)
            else:
                grad_weight += grad_mV.t() @ part_mD
        states, weight, bias = ctx.dtypes
        return grad_states.to(states), grad_weight.to(weight), grad_bias.to(bias), None, None


def _logits(states_mD, weight_VD, bias_V, dtype):
    return (states_mD @ weight_VD.t()).to(dtype).add_(bias_V)
