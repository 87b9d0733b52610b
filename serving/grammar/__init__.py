"""Grammars: texts that a continuation may be, and the tokens that keep it one of them."""
