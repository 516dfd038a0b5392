"""Cross-entropy of enlarged logits over the pixels of label maps, as mmsegmentation has it.

The mean is over all pixels, ignored ones included in the denominator (`over="all"`): with a fifth of the pixels ignored
loss and gradients are a fifth smaller than torch's `ignore_index` gives. `over="valid"` is the mean over the others.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.seg.model.heads import enlarged

IGNORED = 255
_EPS = torch.finfo(torch.float32).eps  # in the denominator, as mmsegmentation has it


def pixel_loss(logits_BKhw: Tensor, labels_BHW: Tensor, over: Literal["all", "valid"] = "all") -> Tensor:
    """The mean cross-entropy of logits (B, K, h, w) enlarged to the labels (B, H, W), integers with 255 ignored."""
    exact = logits_BKhw if logits_BKhw.dtype == torch.float64 else logits_BKhw.float()  # not in half precision
    whole = enlarged(exact, labels_BHW.shape[1:])
    labels = labels_BHW.long()
    total = F.cross_entropy(whole, labels, ignore_index=IGNORED, reduction="sum")
    counted = labels.numel() if over == "all" else (labels != IGNORED).sum()
    return total / (counted + _EPS)
