"""The HTTP interface: `create_app` puts one router for each protocol in front of a `Service`."""

from serving.api.application import create_app

__all__ = ["create_app"]
