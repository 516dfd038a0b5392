"""Images with label maps: readers, mmsegmentation's training pipeline, and checks."""
