"""The transport over ``aiohttp.ClientSession``, for proxies and for sessions that the caller supplies."""
