"""Pretraining methods, one file each, and the table of them."""
