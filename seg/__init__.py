"""Semantic segmentation with an encoder: UperNet end to end, and linear and patch k-NN protocols on frozen encoders."""
