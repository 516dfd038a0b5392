"""Data on disk: data sets by name, image folders and their layouts, shards, and batches in a fixed order."""
