"""Pretraining: one file per method, the maskings they share, and the recipes."""
