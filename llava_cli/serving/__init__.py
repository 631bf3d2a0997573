"""An OpenAI-compatible server around one engine.

`requests` reads what clients send, `worker` feeds the engine, `replies` writes what they get, `app`
is the ASGI application. Not here: options and sockets (`cli/serve.py`).
"""
