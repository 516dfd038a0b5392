"""What pretraining, classification and detection share about training, data on disk and run directories."""
