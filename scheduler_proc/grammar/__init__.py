"""Outputs that must follow a grammar: a process beside the scheduler compiles grammars, follows tokens and sends masks."""
