"""Cross-entropy of enlarged logits over the pixels of label maps, as mmsegmentation has it.

The mean is over all pixels, ignored ones included in the denominator (`over="all"`): with a fifth of the pixels ignored
loss and gradients are a fifth smaller than torch's `ignore_index` gives. `over="valid"` is the mean over the others.

Logits are enlarged some rows at a time, and with the loss of those rows their gradient is computed: what is kept for
the backward pass is as large as the small logits, a hundredth of what the plain form keeps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mimbench.seg.model.enlarge import Rows

IGNORED = 255
PIXELS = {"cpu": 8_192, "cuda": 131_072}  # enlarged at a time, which a CPU's cache or a GPU's units want
_EPS = torch.finfo(torch.float32).eps  # in the denominator, as mmsegmentation has it


def pixel_loss(logits_BKhw: Tensor, labels_BHW: Tensor, over: Literal["all", "valid"] = "all") -> Tensor:
    """The mean cross-entropy of logits (B, K, h, w) enlarged to the labels (B, H, W), integers with 255 ignored."""
    exact = logits_BKhw if logits_BKhw.dtype == torch.float64 else logits_BKhw.float()  # not in half precision
    with torch.autocast(exact.device.type, enabled=False):
        total: Tensor = _Summed.apply(exact, labels_BHW)
    counted = labels_BHW.numel() if over == "all" else (labels_BHW != IGNORED).sum()
    return total / (counted + _EPS)


class _Summed(torch.autograd.Function):
    """The sum of the cross-entropy over pixels that are not ignored."""

    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, labels_BHW: Tensor) -> Tensor:
        step = max(PIXELS.get(logits_BKhw.device.type, PIXELS["cpu"]) // labels_BHW.shape[2], 1)
        enlarge = Rows(logits_BKhw.shape[2:], labels_BHW.shape[1:], step, logits_BKhw)
        gradient = torch.zeros_like(logits_BKhw) if ctx.needs_input_grad[0] else None
        total = logits_BKhw.new_zeros(())
        for place, (logits_Khw, labels_HW) in enumerate(zip(logits_BKhw, labels_BHW, strict=True)):
            for at, logits_KrW in enlarge.each(logits_Khw):
                labels_1rW = labels_HW[None, at[0]].long()
                known_1rW = labels_1rW != IGNORED
                labels_1rW = labels_1rW.where(known_1rW, 0)
                log_sum_1rW = logits_KrW.logsumexp(0, keepdim=True)
                total += ((log_sum_1rW - logits_KrW.gather(0, labels_1rW)) * known_1rW).sum()
                if gradient is not None:
                    share_KrW = logits_KrW.sub_(log_sum_1rW).exp_()
                    share_KrW.scatter_add_(0, labels_1rW, share_KrW.new_full((), -1.0).expand_as(labels_1rW))
                    enlarge.add_back(gradient[place], share_KrW.mul_(known_1rW), at)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [gradient] = ctx.saved_tensors
        return gradients[0] * gradient, None
