"""The browser of paths in the report: what it reads, and how that is packed.

run -> records (`reading`, `records`) -> chunks of 250 with an index (`chunks`) -> one page, or
pages of parts (`parts`)
"""
