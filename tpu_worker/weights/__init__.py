"""Weights from files: readers for GGUF and Hugging Face directories behind one interface."""
