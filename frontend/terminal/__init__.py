"""What an operator, or a newcomer, types at a terminal: `engine-chat`, `engine-story` and `engine-top`."""
