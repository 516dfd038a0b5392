"""COCO and LVIS: reading, checking, augmenting and batching."""
