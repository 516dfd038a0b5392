"""Learning classes by sigmoids, and the federated loss of LVIS: most categories are not asked about in most images.

With sigmoids each class is a yes-or-no question of its own. LVIS says of an image which categories it shows and for a
few which it does not; of a thousand others nobody looked. So the loss takes the classes that the regions show, and as
many random others as make up a fixed number, drawn by the square root of how many images show them.

detectron2's `FastRCNNOutputLayers.sigmoid_cross_entropy_loss` and `get_fed_loss_classes` (Zhou et al. 2021), drawing
from torch's generator in the same way, so that with the same seed both take the same classes.
"""

# R region of interest, K class, C class that counts

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(images_K: Tensor, power: float = 0.5) -> Tensor:
    """How likely each class is drawn, (K,) float32, from the number of training images that show it."""
    return images_K.float() ** power


def drawn_classes(label_R: Tensor, weight_K: Tensor, count: int) -> Tensor:
    """The classes (C,) that a loss over these regions is about; background, label K, takes one of the `count` places.

    Args:
        label_R: 0..K-1, or K for background.
        weight_K: `class_weights`; a class of weight 0 is never drawn.
        count: how many classes in all; the regions' own are taken even if they are more.
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
    """Binary cross entropy (R,) of each region, summed over all classes, or over `class_C` alone.

    Args:
        logits_RK: (R, K + 1); the last column, the background's, is not looked at.
        label_R: 0..K-1, or K for background, which is no to every class.
        class_C: indices; K among them counts for nothing.
    """
    classes = logits_RK.shape[1] - 1
    wanted_RK = F.one_hot(label_R, classes + 1)[:, :classes].to(logits_RK.dtype)
    missed_RK = F.binary_cross_entropy_with_logits(logits_RK[:, :classes], wanted_RK, reduction="none")
    if class_C is None:
        return missed_RK.sum(1)
    counts_K = missed_RK.new_zeros(classes + 1)
    counts_K[class_C] = 1
    return missed_RK @ counts_K[:classes]
