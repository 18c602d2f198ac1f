"""`t2i batch`: makes the images of a prompts file; records them, so that a run can be resumed.

`rows` turns prompts into requests, `row_filenames` names their files, `plan` selects the images to
make, and `runner` is the main loop: it runs an `executor` and records outcomes in a `manifest`.
"""
