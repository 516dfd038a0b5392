"""The encoders, and reading and writing their checkpoints. Independent of data, training and jobs."""
