"""HTTP/1.1 on an open port: connections, requests and answers, each bounded in bytes and seconds. Beyond here speaks ASGI."""
