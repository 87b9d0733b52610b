"""Which version of a task answers a request, and how the answers of two versions compare."""
