"""Calls of tools in the texts of models: how each kind of model writes them, and what an answer's text is made of."""
