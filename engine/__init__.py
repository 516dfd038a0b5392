"""The parts that all tasks share: the training loop, data on disk and run directories."""
