"""The HTTP/1.1 client for everything that has a URL: engines, chat upstreams, `moonbase verify`."""
