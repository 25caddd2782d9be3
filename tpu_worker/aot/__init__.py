"""Programs that are compiled ahead of time: for chips that need not be there, and kept for those that are."""
