"""The demonstration `ken demo`: the main job end to end, on real models and text."""
