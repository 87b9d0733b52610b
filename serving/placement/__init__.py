"""Which replica answers which task. Pure: no store, no clock, no HAProxy."""
