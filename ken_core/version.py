"""The version of both packages, which the project files of both distributions read."""

__version__ = "0.1.0"
