"""The steps of a run, one file each, in the order in which a round makes them.

The file of a step has its VERSION, `content` (what its folder is named after), `make`, and
`summary` (what is reported to the user).

A folder has what one VERSION of the code makes from one content. VERSION is raised when the same
content gives a different result; finished runs then make that step again in a new folder.
"""
