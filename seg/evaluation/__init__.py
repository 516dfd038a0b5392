"""Inference by sliding windows, mIoU as in mmsegmentation, and pictures of the results."""
