"""The same recipe inside detectron2: its model, trainer and evaluator."""
