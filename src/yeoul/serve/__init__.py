"""The server: OpenAI's endpoints over the engine, and a web page."""
