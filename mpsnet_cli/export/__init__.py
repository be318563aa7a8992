"""Motions in the formats of other tools: one small module each."""
