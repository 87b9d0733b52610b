"""What a server tells of itself: metrics, logs, the audit log, traces."""
