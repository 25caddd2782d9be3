"""The engine of the tests of HTTP, watched."""

from tests.frontend.server.api.conftest import http, running

__all__ = ["http", "running"]
