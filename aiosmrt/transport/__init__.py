"""How bytes reach the service: the Transport protocol and what implements it on aiohttp."""
