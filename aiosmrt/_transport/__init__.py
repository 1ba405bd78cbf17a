"""Sends signed requests over HTTP/1.1 with aiohttp and receives their responses. Definitions are in `base`."""
