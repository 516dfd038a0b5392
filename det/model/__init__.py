"""Mask R-CNN and Cascade on ViTDet, with detectron2's arithmetic and parameter names."""
