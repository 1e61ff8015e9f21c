"""Reasoning paths: guidelines, the chain of stages, and the handler that makes them."""
