"""Threads that encode texts and present answers, a step at a time, with turns between clients."""
