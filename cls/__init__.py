"""Image classification with an encoder: fine-tune, linear probe and k-NN, under the papers' protocols."""
