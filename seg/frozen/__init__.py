"""Protocols that leave the encoder as it is: a linear head, and k-NN over patches."""
