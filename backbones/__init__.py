"""The encoders, and checkpoints in and out. Knows nothing of data, training or jobs."""
