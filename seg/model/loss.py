"""Cross-entropy of enlarged logits over the pixels of label maps, as in mmsegmentation.

With `over="all"` the denominator of the mean includes ignored pixels: if a fifth of the pixels is ignored, loss and
gradients are a fifth smaller than with torch's `ignore_index`. `over="valid"` is the mean over the other pixels.

Logits are enlarged some rows at a time, and the gradient of these rows is computed together with their loss. So the
backward pass keeps only as much as the small logits, a hundredth of the plain form.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mimbench.seg.model.enlarge import Rows

IGNORED = 255
PIXELS = {"cpu": 8_192, "cuda": 131_072}  # enlarged at a time; suits a CPU's cache and a GPU's units
_EPS = torch.finfo(torch.float32).eps  # in the denominator, as in mmsegmentation


def pixel_loss(logits_BKhw: Tensor, labels_BHW: Tensor, over: Literal["all", "valid"] = "all") -> Tensor:
    """Return the mean cross-entropy of logits (B, K, h, w) enlarged to integer labels (B, H, W); 255 is ignored."""
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
