"""Pretraining: one file per method, what they share about masking, and the recipes."""
