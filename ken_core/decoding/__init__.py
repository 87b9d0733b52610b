"""Decoding: steps of many sequences through one backbone, with the keys and values of the steps before."""
