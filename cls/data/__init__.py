"""Labelled images for classification: crops, checks, and ImageNet's robustness sets."""
