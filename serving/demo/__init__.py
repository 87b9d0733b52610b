"""The demonstration `ken demo`: the whole workflow on a real model and real text."""
