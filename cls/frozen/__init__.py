"""Evaluations of a frozen encoder: k-NN, linear probes, few-shot, on features computed once."""
