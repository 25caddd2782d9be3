"""Text to tokens and back: tokenizer, chat template, incremental detokenization, stop strings."""
