"""The steps of a run, a file each, in the order in which a round makes them.

A step's file has its VERSION, `content` (what its folder is named after), `make`, and `summary`
(what people are told of it).

A folder holds what one VERSION of the code makes of one content. A VERSION is raised when the same
content comes to something else; then finished runs make that step anew, in a new folder.
"""
