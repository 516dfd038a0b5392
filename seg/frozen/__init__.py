"""Protocols with a frozen encoder: a linear head, and k-NN over patches."""
