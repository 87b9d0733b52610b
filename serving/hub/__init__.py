"""Deltas in repositories of the Hugging Face Hub, each described in the repository's model card."""
