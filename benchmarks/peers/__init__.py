"""Peers: other ways to serve many fine-tunes, and the clients that put load on them and on this project's server."""
