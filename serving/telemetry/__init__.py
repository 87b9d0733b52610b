"""What a server reports about itself: metrics, logs, the audit log and traces."""
