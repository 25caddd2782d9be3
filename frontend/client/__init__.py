"""The Python client: talks to a running engine over its Unix socket."""
