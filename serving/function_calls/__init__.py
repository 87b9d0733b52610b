"""Calls of functions (OpenAI's tools) in the texts of models: how each family of models writes them. Pure."""
