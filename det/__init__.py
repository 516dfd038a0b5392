"""COCO detection with ViTDet: data, Mask R-CNN with detectron2's arithmetic and names, training and evaluation."""
