"""Rendering chat templates, which are programs of unknown origin, in processes of their own."""
