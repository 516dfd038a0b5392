"""Classification with sigmoids, and LVIS's federated loss, which uses only a sample of the categories.

With sigmoids each class is a separate binary decision. LVIS annotates which categories are on an image and, for a few
others, that they are not; about a thousand others are unknown. So the loss uses the regions' classes, plus random
others up to a fixed number, drawn with the square root of the number of images that have them.

Equal to detectron2's `FastRCNNOutputLayers.sigmoid_cross_entropy_loss` and `get_fed_loss_classes` (Zhou et al. 2021).
Both draw the same classes with the same seed of torch's generator.
"""

# R region of interest, K class, C class in the loss

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(images_K: Tensor, power: float = 0.5) -> Tensor:
    """Return the sampling weight of each class, (K,) float32, from the number of training images that have it."""
    return images_K.float() ** power


def drawn_classes(label_R: Tensor, weight_K: Tensor, count: int) -> Tensor:
    """Return the classes (C,) of a loss over these regions; background, label K, is one of the `count` classes.

    Args:
        label_R: 0..K-1, or K for background.
        weight_K: `class_weights`; a class of weight 0 is never drawn.
        count: total number of classes; more only if the regions have more.
    """
    shown_C = label_R.unique()
    if len(shown_C) >= count:
        return shown_C
    chance = F.pad(weight_K.float(), (0, 1))
    chance[shown_C] = 0
    others = min(count - len(shown_C), int((chance > 0).sum()))
    if not others:
        return shown_C
    return torch.cat([shown_C, chance.multinomial(others)])


def sigmoid_losses(logits_RK: Tensor, label_R: Tensor, class_C: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy (R,) of each region, summed over all classes or over `class_C`.

    Args:
        logits_RK: (R, K + 1); the last column, the background's, is ignored.
        label_R: 0..K-1, or K for background, which is negative for every class.
        class_C: indices; K among them is ignored.
    """
    classes = logits_RK.shape[1] - 1
    wanted_RK = F.one_hot(label_R, classes + 1)[:, :classes].to(logits_RK.dtype)
    missed_RK = F.binary_cross_entropy_with_logits(logits_RK[:, :classes], wanted_RK, reduction="none")
    if class_C is None:
        return missed_RK.sum(1)
    counts_K = missed_RK.new_zeros(classes + 1)
    counts_K[class_C] = 1
    return missed_RK @ counts_K[:classes]
