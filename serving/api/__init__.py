"""The HTTP surface: `create_app` puts one router a protocol in front of a `Service`."""

from serving.api.application import create_app

__all__ = ["create_app"]
