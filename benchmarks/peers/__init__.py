"""Other ways to serve many fine-tunes, and the clients that load them and this project's server alike."""
