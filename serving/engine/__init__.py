"""The thread that owns the weights: which batch runs next, and how it runs."""
