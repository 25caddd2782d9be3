"""The scheduler: which tokens of which request run in which step, on which worker. Pure decisions; `loop` is the only I/O."""
