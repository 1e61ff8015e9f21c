"""The strategies, a file each; `pipelines.strategy` finds them."""
