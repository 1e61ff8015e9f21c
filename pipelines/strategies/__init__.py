"""The strategies, one file each; `pipelines.strategy` finds them."""
