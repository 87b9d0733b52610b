"""API keys and what they allow, who can reach the server, and signatures of deltas."""
