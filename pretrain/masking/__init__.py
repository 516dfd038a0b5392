"""Which patches are shown, predicted and dropped: random, grid, attention-driven, teacher-driven."""
