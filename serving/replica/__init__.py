"""What one replica does beside computing: predictions from their inputs to their outputs, and vetting of new deltas."""
