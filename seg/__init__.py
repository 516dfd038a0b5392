"""Semantic segmentation with an encoder: UperNet end to end, and frozen linear and patch k-NN protocols."""
