"""Who may ask for what, who can reach the server, and who signed a delta."""
