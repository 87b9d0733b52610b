"""Starts and stops a server: Ray, HAProxy and the processes around them."""
