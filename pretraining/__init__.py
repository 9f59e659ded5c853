"""Weights in, better weights out: corpora of labelled audio, sampling, recipes."""
