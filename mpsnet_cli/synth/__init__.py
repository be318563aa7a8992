"""Synthetic people: recorded motions, dressed bodies, pictures with exact ground truth."""
