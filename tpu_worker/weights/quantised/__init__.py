"""Weights of few bits in Hugging Face directories: one file for each way to store them, `schemes` has them all."""
