"""The chips of one worker, and what of a model lies on each of them."""
