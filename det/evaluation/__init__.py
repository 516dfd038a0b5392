"""Detections as COCO results, metrics, kinds of mistakes, and pictures."""
