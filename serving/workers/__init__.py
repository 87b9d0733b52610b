"""Threads that encode texts and present answers, one step at a time, and give clients turns."""
