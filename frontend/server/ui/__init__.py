"""The page at /: its files, and what it is told."""
