"""Maskings, which choose the patches to show, predict and drop: random, grid, attention-driven, teacher-driven."""
