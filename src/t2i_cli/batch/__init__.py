"""`t2i batch`: many requests, planned, made, recorded and resumed.

`rows` makes requests of prompts, `names` their file names, `plan` what is still to be made;
`driver` is the loop, which gets images from an `executor` and writes them to a `manifest`.
"""
