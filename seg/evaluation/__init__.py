"""Inference by sliding windows, mIoU by mmsegmentation's rule, and pictures of the results."""
