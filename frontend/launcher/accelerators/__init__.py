"""The accelerators of this host, seen from outside: what is there, which of it a worker gets, and what would keep it from that.

Without JAX, and before any process is started: `host`, `tpu`, `cuda` and `versions` read facts, and decide by these alone.
"""
